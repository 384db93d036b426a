"""timm's contract for a vision backbone: what all have in common, pyramids, and what builds a model by name.

A family builds its stem, its blocks and its norm; everything a user calls is here, and for plain (one-stride) models in
`_plain`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead, get_device_dtype
from timm.models import build_model_with_cfg, checkpoint_seq
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


def make_stages(
    block: Callable[[int, int, float], nn.Module],
    dims: Sequence[int],
    depths: Sequence[int],
    downsample: Callable[..., nn.Module],
    drop_path_rate: float,
    **dd: Any,
) -> list[Stage]:
    """The stages of a pyramid; stochastic depth rises linearly from block to block.

    Args:
        block: makes one from the number of its stage, its channels and its rate of drop path.
        dims, depths: channels and number of blocks of each stage.
        downsample: makes what a stage begins with, except the first, from numbers of channels.
        drop_path_rate: of the last block.
        **dd: device and dtype.
    """
    rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
    return [
        Stage(
            downsample(dims[i - 1], dim, **dd) if i > 0 else nn.Identity(),
            [block(i, dim, next(rates)) for _ in range(depth)],
            channels=dim,
        )
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True))
    ]


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
        check_format(output_fmt)
        taken = chosen(indices, len(self.stages))
        stages = self.stages[: max(taken) + 1] if stop_early else self.stages
        x = self.stem(image)
        maps = []
        for i, stage in enumerate(stages):
            x = stage(x)
            if i in taken:
                maps.append(self.norm(x) if norm and i == len(self.stages) - 1 else x)
        maps = [as_format(m, output_fmt) for m in maps]
        if intermediates_only:
            return maps
        return self.norm(x) if len(stages) == len(self.stages) else x, maps

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the chosen stages' maps do not need; returns the chosen stages' numbers."""
        taken = chosen(indices, len(self.stages))
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


def chosen(indices: Indices, count: int) -> list[int]:
    """Numbers of the chosen stages or blocks: all for None, the last n for an integer n; negative ones count from the
    end."""
    if indices is None:
        return list(range(count))
    numbers = range(-indices, 0) if isinstance(indices, int) else indices
    if not numbers or not all(-count <= index < count for index in numbers):
        raise ValueError(f"indices are {indices}; expected some of 0 to {count - 1}, or how many of the last {count}")
    return [index % count for index in numbers]


def quarters(count: int) -> tuple[int, ...]:
    """Four of `count` stages or blocks, each the last of a quarter; fewer where there are fewer.

    >>> quarters(24), quarters(4), quarters(2)
    ((5, 11, 17, 23), (0, 1, 2, 3), (0, 1))
    """
    return tuple(sorted({max(count * quarter // 4 - 1, 0) for quarter in (1, 2, 3, 4)}))


def check_format(output_fmt: str) -> None:
    if output_fmt not in ("NCHW", "NHWC"):
        raise ValueError(f'output_fmt is {output_fmt!r}; expected "NCHW" or "NHWC"')


def as_format(channels_last: Tensor, output_fmt: str) -> Tensor:
    return channels_last.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else channels_last
