"""timm's contract for a vision backbone, once for pyramids and once for plain (one-stride) models.

A family builds its stem, its blocks and its norm; everything a user calls is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead, get_device_dtype
from timm.models import build_model_with_cfg, checkpoint, checkpoint_seq
from torch import Tensor, nn

from vssm.models._checkpoint import WEIGHTS_UNDER, check_obtainable, fit, load_checkpoint, unwrap
from vssm.scan import resolve_order

Indices = int | Sequence[int] | None


class Backbone(nn.Module):
    """What pyramids and plain models have in common: an image goes in, logits come out.

    `first_conv` and `classifier` name the layers whose shapes follow the image's channels and the classes;
    `weights_under` are the keys that weights are looked for under in a training checkpoint, in this order.
    """

    first_conv: str
    classifier: str
    weights_under: Sequence[str] = WEIGHTS_UNDER
    num_features: int
    head_hidden_size: int
    feature_info: list[dict[str, Any]]

    def convert_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official names and shapes to ours; anything unknown stays as it is, to be reported."""
        raise NotImplementedError

    def load_pretrained(self, path: str) -> None:
        """Called by timm for `pretrained=True`: another number of classes or input channels is adapted to."""
        load_checkpoint(self, path, adapt=True)

    def forward_features(self, image: Tensor) -> Tensor:
        raise NotImplementedError

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, classes)."""
        return self.forward_head(self.forward_features(image))

    def parameters_ending(self, *endings: str) -> set[str]:
        """Names of the parameters whose last part is one of `endings`."""
        return {name for name, _ in self.named_parameters() if name.rsplit(".", 1)[-1] in endings}


class Stage(nn.Module):
    """Downsampling, then blocks on one size of map: (batch, height, width, channels), both ways."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], channels: int):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.channels = channels
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        return checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)


class Pyramid(Backbone):
    """Stem, stages of halving size, norm, pooling, classifier; channels-last maps throughout.

    Args:
        stem: image to the first map.
        stages: each halves the size, except the first.
        norm: of the last stage's map, before pooling.
        stem_stride: pixels per position of the first map.
        in_chans, num_classes, global_pool, drop_rate: as everywhere in timm.
    """

    output_fmt = "NHWC"
    classifier = "head.fc"

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Stage],
        norm: nn.Module,
        stem_stride: int,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.in_chans, self.num_classes = in_chans, num_classes
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm = norm
        self.num_features = stages[-1].channels
        self.head = ClassifierHead(
            self.num_features,
            num_classes,
            pool_type=global_pool,
            drop_rate=drop_rate,
            input_fmt=self.output_fmt,
            device=device,
            dtype=dtype,
        )
        self.head_hidden_size = self.head.num_features
        self.feature_info = [
            {"num_chs": stage.channels, "reduction": stem_stride * 2**i, "module": f"stages.{i}"}
            for i, stage in enumerate(stages)
        ]

    def forward_features(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, height / 32, width / 32, num_features), normed."""
        return self.norm(self.stages(self.stem(image)))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(features, pre_logits=pre_logits)

    def forward_intermediates(
        self,
        image: Tensor,
        indices: Indices = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of chosen stages, and the final features.

        Args:
            image: (batch, channels, height, width).
            indices: which stages; an integer means the last so many, None all.
            norm: apply the final norm to the last stage's map.
            stop_early: leave out the stages after the last chosen one.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: return the list of maps alone.
        """
        _check_format(output_fmt)
        taken = _taken(indices, len(self.stages))
        stages = self.stages[: max(taken) + 1] if stop_early else self.stages
        x = self.stem(image)
        maps = []
        for i, stage in enumerate(stages):
            x = stage(x)
            if i in taken:
                maps.append(self.norm(x) if norm and i == len(self.stages) - 1 else x)
        maps = [_as_format(m, output_fmt) for m in maps]
        if intermediates_only:
            return maps
        return self.norm(x) if len(stages) == len(self.stages) else x, maps

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the chosen stages' maps do not need; returns the chosen stages' numbers."""
        taken = _taken(indices, len(self.stages))
        ends_early = max(taken) < len(self.stages) - 1
        self.stages = self.stages[: max(taken) + 1]
        if ends_early:
            self.num_features = self.stages[-1].channels
        if prune_norm or ends_early:
            self.norm = nn.Identity()
        if prune_head or ends_early:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier (none for 0 classes), and another pooling where given."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, in_features=self.num_features, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping their activations."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups from stem to head, for layer-wise learning rates."""
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}


class Plain(Backbone):
    """Patch embedding, blocks of one size, norm, pooling, classifier: tokens (batch, tokens, channels) throughout.

    A family sets `blocks` (each takes tokens, height, width), `norm` and what `embed` needs, and says in
    `patch_tokens` and `class_token` which tokens are which.

    Args:
        num_features: channels of the tokens.
        stride: pixels from one patch to the next.
        depth: number of blocks.
        in_chans, num_classes, global_pool ("token", "avg", "max" or ""), drop_rate: as everywhere in timm.
    """

    classifier = "head"
    blocks: nn.Sequential
    norm: nn.Module

    def __init__(
        self,
        num_features: int,
        stride: int,
        depth: int,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.in_chans, self.num_classes = in_chans, num_classes
        self.num_features = self.head_hidden_size = num_features
        self.global_pool = _check_pool(global_pool)
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": num_features, "reduction": stride, "module": f"blocks.{i}"} for i in range(depth)
        ]
        self.head_drop = nn.Dropout(drop_rate)
        self.head = _linear(num_features, num_classes, device=device, dtype=dtype)

    def embed(self, image: Tensor) -> tuple[Tensor, int, int]:
        """Tokens for the first block, and the height and width of the grid of patches."""
        raise NotImplementedError

    def patch_tokens(self, tokens: Tensor) -> Tensor:
        """The tokens of the grid, in raster order."""
        raise NotImplementedError

    def class_token(self, tokens: Tensor) -> Tensor:
        """(batch, channels)."""
        raise NotImplementedError

    def forward_features(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, tokens, num_features), normed."""
        tokens, height, width = self.embed(image)
        for block in self.blocks:
            tokens = self._run(block, tokens, height, width)
        return self.norm(tokens)

    def _run(self, block: nn.Module, tokens: Tensor, height: int, width: int) -> Tensor:
        if self.grad_checkpointing:
            return checkpoint(block, tokens, height, width)
        return block(tokens, height, width)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = self.head_drop(self._pool(features))
        return pooled if pre_logits else self.head(pooled)

    def _pool(self, tokens: Tensor) -> Tensor:
        match self.global_pool:
            case "token":
                return self.class_token(tokens)
            case "avg":
                return self.patch_tokens(tokens).mean(1)
            case "max":
                return self.patch_tokens(tokens).amax(1)
            case _:
                return tokens

    def forward_intermediates(
        self,
        image: Tensor,
        indices: Indices = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps after chosen blocks, and the final features.

        Args:
            image: (batch, channels, height, width).
            indices: which blocks; an integer means the last so many, None all.
            norm: apply the final norm to every map.
            stop_early: leave out the blocks after the last chosen one.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: return the list of maps alone.
        """
        _check_format(output_fmt)
        taken = _taken(indices, len(self.blocks))
        tokens, height, width = self.embed(image)
        maps = []
        for i, block in enumerate(self.blocks[: max(taken) + 1] if stop_early else self.blocks):
            tokens = self._run(block, tokens, height, width)
            if i in taken:
                patches = self.patch_tokens(self.norm(tokens) if norm else tokens)
                maps.append(_as_format(patches.unflatten(1, (height, width)).to(image.dtype), output_fmt))
        return maps if intermediates_only else (self.norm(tokens), maps)

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the chosen blocks' maps do not need; returns the chosen blocks' numbers."""
        taken = _taken(indices, len(self.blocks))
        self.blocks = self.blocks[: max(taken) + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier (none for 0 classes), and another pooling where given."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = _check_pool(global_pool)
        self.head = _linear(self.num_features, num_classes, **get_device_dtype(self)).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups from stem to head, for layer-wise learning rates."""
        return {
            "stem": r"^cls_token|^pos_embed|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }


def build(
    model_class: Callable[..., Backbone],
    variant: str,
    pretrained: bool,
    default_indices: tuple[int, ...],
    **kwargs: Any,
) -> nn.Module:
    """What every @register_model function ends in: timm's builder, with our own reading of checkpoints.

    `default_indices` are the maps that features_only=True gives where no out_indices are asked for. A `scan_order` may
    be a name, an order function or a list of them; models themselves take functions only.
    """
    if "scan_order" in kwargs:
        kwargs["scan_order"] = resolve_order(kwargs["scan_order"])
    overlay = {"custom_load": True, **(kwargs.pop("pretrained_cfg_overlay", None) or {})}
    if pretrained:
        check_obtainable(variant, kwargs.get("pretrained_cfg"), overlay)
    return build_model_with_cfg(
        model_class,
        variant,
        pretrained,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=_filter_state,
        feature_cfg={"out_indices": default_indices, "feature_cls": "getter"},
        **kwargs,
    )


def _filter_state(state: dict[str, Tensor], model: Backbone) -> dict[str, Tensor]:
    """For weights that timm reads itself: from the Hugging Face hub, or handed over in memory."""
    return fit(unwrap(state, "the checkpoint", model.weights_under), model, source="the checkpoint", adapt=True)


def _linear(in_features: int, num_classes: int, **dd: Any) -> nn.Module:
    return nn.Linear(in_features, num_classes, **dd) if num_classes > 0 else nn.Identity()


def _check_pool(global_pool: str) -> str:
    if global_pool not in ("", "token", "avg", "max"):
        raise ValueError(f'global_pool is {global_pool!r}; expected "token", "avg", "max", or "" for none')
    return global_pool


def _taken(indices: Indices, count: int) -> list[int]:
    """Numbers of the chosen stages or blocks: all for None, the last n for an integer n; negative ones count from the
    end."""
    if indices is None:
        return list(range(count))
    chosen = range(-indices, 0) if isinstance(indices, int) else indices
    if not chosen or not all(-count <= index < count for index in chosen):
        raise ValueError(f"indices are {indices}; expected some of 0 to {count - 1}, or how many of the last {count}")
    return [index % count for index in chosen]


def _check_format(output_fmt: str) -> None:
    if output_fmt not in ("NCHW", "NHWC"):
        raise ValueError(f'output_fmt is {output_fmt!r}; expected "NCHW" or "NHWC"')


def _as_format(channels_last: Tensor, output_fmt: str) -> Tensor:
    return channels_last.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else channels_last
