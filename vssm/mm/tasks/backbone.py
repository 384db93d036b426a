"""Every timm model as the backbone of mmdetection's and mmsegmentation's heads."""

import re
from collections.abc import Sequence

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.models import group_parameters
from timm.models._hub import download_cached_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vssm import models
from vssm.errors import ConfigError
from vssm.inference.create import create_model
from vssm.inference.saved import to_plain
from vssm.models import quarters, take_indices
from vssm.values import whole


@MODELS.register_module()
class VSSMBackbone(BaseModule):
    """The feature maps of a model at chosen depths, each with a LayerNorm, for detection and segmentation heads.

    Registered in mmengine's root registry, where mmdet, mmseg and mmpretrain find it. Parts that the maps do not need
    (the classifier, the final norm, later stages) are removed, so that every parameter gets a gradient. Weights are
    read in `init_weights`, which a training calls and an evaluation does not.

    Detectors and segmentors of the official repositories can be loaded by ``load_state_dict`` or mmengine's
    ``load_from``: the backbone's weights are renamed on the way.

    Images may have any size of at least one patch. Stems with a padded convolution round odd sizes up; stems that cut
    the image into patches do not read pixels beyond the last whole patch, so let the preprocessor pad to a multiple of
    the largest stride (``pad_size_divisor=32``). Position embeddings are resized to each batch.

    Args:
        name: a timm model, such as "vmamba_tiny".
        out_indices: of which stages (of plain models: after which blocks) maps are given; None for four at the
            quarters of the depth, which is every stage of a pyramid.
        output_norm: a LayerNorm on every map.
        entries: give what the blocks of each stage receive, and the last map, in place of the maps that stages end in:
            the skips of VM-UNet and MHS-VM. For pyramids, all of whose stages are used, without `output_norm`.
        frozen_stages: -1 for none, 0 for the stem, n for the stem and the first n stages (plain models: blocks): their
            weights get no gradient, and stay in evaluation mode.
        norm_eval: do not update BatchNorm's running statistics.
        grad_checkpointing: recompute activations in the backward pass instead of storing them.
        drop_path_rate: stochastic depth, which rises linearly to this rate.
        pretrained: download the published ImageNet weights and start from them.
        init_cfg: ``dict(type="Pretrained", checkpoint=...)`` with a file or an address of a classifier, a detector or a
            segmentor, in our layout or the official one.
        **arguments: further ones of the model: ``img_size``, ``scan_order``, ``in_chans`` ...

    Raises:
        ConfigError: an unknown name or argument, or indices or stages that the model does not have.

    Example:
        >>> import torch
        >>> backbone = VSSMBackbone("vmamba_tiny", dims=(16, 32, 64, 128), depths=(1, 1, 1, 1))
        >>> [tuple(x.shape) for x in backbone(torch.zeros(1, 3, 64, 97))]
        [(1, 16, 16, 25), (1, 32, 8, 13), (1, 64, 4, 7), (1, 128, 2, 4)]
        >>> backbone.channels, backbone.strides
        ([16, 32, 64, 128], [4, 8, 16, 32])
    """

    def __init__(
        self,
        name: str,
        out_indices: Sequence[int] | None = None,
        output_norm: bool = True,
        entries: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        grad_checkpointing: bool = False,
        drop_path_rate: float = 0.0,
        pretrained: bool = False,
        init_cfg: dict | None = None,
        **arguments: object,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.name, self.pretrained, self.norm_eval, self.entries = name, pretrained, norm_eval, entries
        self.arguments = {**to_plain(arguments), "drop_path_rate": drop_path_rate}
        self.checkpoint = _checkpoint_of(init_cfg)
        if pretrained and self.checkpoint:
            raise ConfigError("backbone: pretrained=True and init_cfg both name weights; give one of them")

        self.model = create_model(name, **self.arguments)
        if not hasattr(self.model, "forward_intermediates"):
            raise ConfigError(
                f"backbone: {name!r} gives no maps (it has no forward_intermediates); choose another model"
            )
        places = self.model.feature_info
        self.out_indices = _indices(out_indices, len(places), name)
        self.channels = [places[i]["num_chs"] for i in self.out_indices]
        self.strides = [places[i]["reduction"] for i in self.out_indices]
        if entries:
            if output_norm or not isinstance(self.model, models.Pyramid) or len(self.out_indices) < len(places):
                raise ConfigError(
                    "backbone: entries=True is for pyramids of this library, with output_norm=False and all out_indices"
                )
            self.channels.append(self.channels[-1])
            self.strides.append(self.strides[-1])

        whole = set(self.model.state_dict())
        self.model.prune_intermediate_layers(self.out_indices, prune_norm=True, prune_head=True)
        self.removed = whole - set(self.model.state_dict())
        if output_norm:
            # Inside the model, where the official checkpoints have them.
            eps = getattr(self.model, "output_norm_eps", models.Backbone.output_norm_eps)  # timm's models have none
            for i, channels in zip(self.out_indices, self.channels, strict=True):
                self.model.add_module(f"outnorm{i}", nn.LayerNorm(channels, eps))
        self.added = set(self.model.state_dict()) - whole

        if isinstance(self.model, models.Backbone):
            self.register_load_state_dict_pre_hook(rename_official)
        elif self.checkpoint:
            raise ConfigError(
                f"backbone: init_cfg is for the models of this library, and {name!r} is timm's: give "
                "pretrained=True, with pretrained_cfg_overlay=dict(file=FILE) for a file of your own"
            )
        self.model.set_grad_checkpointing(grad_checkpointing)
        self._freeze(frozen_stages)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(batch, channels, height, width) -> one map (batch, channels, rows, columns) for each of `out_indices`; with
        `entries` one more."""
        if self.entries:
            return tuple(self.model.forward_entries(image))
        maps = self.model.forward_intermediates(image, indices=self.out_indices, intermediates_only=True)
        return tuple(self._normed(x, i) for x, i in zip(maps, self.out_indices, strict=True))

    def _normed(self, x: Tensor, index: int) -> Tensor:
        norm = getattr(self.model, f"outnorm{index}", None)
        return x if norm is None else norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def init_weights(self) -> None:
        """Load all the weights that `pretrained` or `init_cfg` names, or none; without them, change nothing.

        Raises:
            CheckpointError: the file cannot be downloaded or read, or does not fit; the message names the keys.
        """
        if self.pretrained:
            whole = self._published().state_dict()
            self.model.load_state_dict({**self.model.state_dict(), **_without(whole, self.removed)})
        elif self.checkpoint:
            path = _downloaded(self.checkpoint) if "://" in self.checkpoint else self.checkpoint
            models.load_checkpoint(self.model, path, adapt=True, removed=self.removed, added=self.added)

    def _published(self) -> nn.Module:
        try:
            return create_model(self.name, pretrained=True, **self.arguments)
        except OSError as error:
            raise models.CheckpointError(
                f"the published weights of {self.name} could not be downloaded ({error}): check the network, or fetch "
                "the file otherwise and name it with --cfg-options model.backbone.pretrained=False "
                "model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE"
            ) from error

    def train(self, mode: bool = True) -> "VSSMBackbone":
        """As in PyTorch, but frozen parts stay in evaluation mode, and with `norm_eval` BatchNorm too."""
        super().train(mode)
        for module in self.model.modules():
            parameters = list(module.parameters())
            frozen = parameters and not any(parameter.requires_grad for parameter in parameters)
            if frozen or (self.norm_eval and isinstance(module, _BatchNorm)):
                module.eval()
        return self

    def _freeze(self, frozen_stages: int) -> None:
        layers = group_parameters(self.model, self.model.group_matcher(coarse=True), reverse=True)
        stages = {layer for name, layer in layers.items() if name not in self.added}
        if not whole(-1, len(stages) - 1).holds(frozen_stages):
            raise ConfigError(
                f"backbone: frozen_stages is {frozen_stages!r}; expected -1 for none, 0 for the stem, up to "
                f"{len(stages) - 1} for all of {self.name!r}"
            )
        for name, parameter in self.model.named_parameters():
            if name not in self.added and layers[name] <= frozen_stages:
                parameter.requires_grad_(False)
        self.train(self.training)


def _indices(out_indices: Sequence[int] | None, count: int, name: str) -> list[int]:
    """The indices of the chosen maps, in rising order; negative ones count from the end."""
    if out_indices is None:
        return list(quarters(count))
    try:
        chosen, _ = take_indices(count, list(out_indices))
        rising = chosen == sorted(set(chosen))
    except (TypeError, ValueError):  # beyond the model's maps, or none
        rising = False
    if not rising:
        raise ConfigError(
            f"backbone: out_indices is {to_plain(out_indices)!r}; expected rising numbers from 0 to {count - 1}, "
            f"for as many maps of {name!r}"
        )
    return chosen


def rename_official(backbone: VSSMBackbone, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """A hook before a state dict is loaded: rename the backbone's weights if they are in the official layout."""
    # What stands beside the model has official names.
    beside = {f"{prefix}{name}" for name in backbone.state_dict() if not name.startswith("model.")}
    part = {name: value for name, value in state.items() if name.startswith(prefix) and name not in beside}
    if any(name.startswith(f"{prefix}model.") for name in part):
        return
    for name in part:
        del state[name]
    part = {name.removeprefix(prefix): value for name, value in part.items()}
    converted = models.our_layout(part, backbone.model, backbone.removed)
    state.update({f"{prefix}model.{name}": value for name, value in converted.items()})


def _checkpoint_of(init_cfg: dict | None) -> str | None:
    """The file or address in an init_cfg."""
    if init_cfg is None:
        return None
    if init_cfg.get("type") != "Pretrained" or not init_cfg.get("checkpoint"):
        raise ConfigError(
            f"backbone: init_cfg is {to_plain(init_cfg)}; expected dict(type='Pretrained', checkpoint=FILE), or none: "
            "models initialise themselves as their papers say"
        )
    return str(init_cfg["checkpoint"])


def _downloaded(address: str) -> str:
    """Download a file into torch's cache, under its whole address, because many are called epoch_12.pth."""
    try:
        return download_cached_file((address, re.sub(r"[^\w.]+", "_", address)), check_hash=False)
    except OSError as error:
        raise models.CheckpointError(
            f"{address} could not be downloaded ({error}): check the address and the network, or fetch the file "
            "otherwise and give its path"
        ) from error


def _without(state: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name not in names}
