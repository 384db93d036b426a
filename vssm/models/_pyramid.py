"""timm's contract for pyramids: stages on maps of falling size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from operator import mul
from typing import Any

import torch
from timm.layers import ClassifierHead, to_2tuple
from torch import Tensor, nn

from vssm.models._contract import Indices, as_format, check_format, take_indices, with_defaults
from vssm.models._pooled import Pooled
from vssm.models._recomputed import recomputed
from vssm.nn import Blocks, cut_windows, drop_path_rates, stitch_windows


class Stage(nn.Module):
    """Downsampling, then blocks on one size of map, then a norm: (batch, height, width, channels) in and out.

    Args:
        downsample: its attribute `stride` says how many times smaller its output is; once, where it has none.
        blocks: map to map.
        channels: of the blocks.
        norm: of the map that the stage gives; none if not given.
        window: side of the windows that the map is cut into for all blocks, in positions; not cut if not given.
    """

    def __init__(
        self,
        downsample: nn.Module,
        blocks: Sequence[nn.Module],
        channels: int,
        norm: nn.Module | None = None,
        window: int | None = None,
    ):
        super().__init__()
        self.downsample = downsample
        self.blocks = Blocks(*blocks)
        self.norm = norm or nn.Identity()
        self.channels = channels
        self.window = window
        self.stride = to_2tuple(getattr(downsample, "stride", 1))[0]
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        return self.run_blocks(self.downsample(x))

    def run_blocks(self, x: Tensor) -> Tensor:
        """What follows the downsampling."""
        height, width = x.shape[1], x.shape[2]
        if self.window is not None:
            x = cut_windows(x, self.window)
        if self.grad_checkpointing:
            for block in self.blocks:
                x = recomputed(block, x)
        else:
            x = self.blocks(x)
        if self.window is not None:
            x = stitch_windows(x, height, width)
        return self.norm(x)


def make_stages(
    block: Callable[[int, int, int, float], nn.Module],
    dims: Sequence[int],
    depths: Sequence[int],
    downsample: Callable[..., nn.Module],
    drop_path_rate: float,
    norm: Callable[..., nn.Module] = nn.Identity,
    windows: Sequence[int | None] | None = None,
    **dd: Any,
) -> list[Stage]:
    """The stages of a pyramid; stochastic depth rises linearly from block to block.

    Args:
        block: makes one from the number of its stage, its number within the stage, its channels and its rate of drop
            path.
        dims, depths: channels and number of blocks of each stage.
        downsample: makes the layer that a stage begins with, except the first, from numbers of channels.
        drop_path_rate: of the last block.
        norm: makes the norm that a stage ends in, except the last, from the number of channels.
        windows: of each stage, see Stage; none if not given.
        **dd: device and dtype.
    """
    rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
    windows = windows or [None] * len(dims)
    return [
        Stage(
            downsample(dims[i - 1], dim, **dd) if i > 0 else nn.Identity(),
            [block(i, j, dim, next(rates)) for j in range(depth)],
            channels=dim,
            norm=norm(dim, **dd) if i < len(dims) - 1 else None,
            window=window,
        )
        for i, (dim, depth, window) in enumerate(zip(dims, depths, windows, strict=True))
    ]


class Pyramid(Pooled):
    """Stem, stages, norm, pooling, classifier; channels-last maps throughout.

    Args:
        stem: image to the first map; its attributes `stride` and `first_conv` name the pixels per position of that map
            and the layer that reads the image.
        stages: each makes the map smaller by its stride.
        norm: of the last stage's map, before pooling.
        in_chans, num_classes, global_pool, drop_rate: as everywhere in timm.
        head: makes what follows, a ClassifierHead of timm's or a subclass, from its arguments.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Stage],
        norm: nn.Module,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        head: Callable[..., ClassifierHead] = ClassifierHead,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(in_chans)
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm = norm
        self.add_head(stages[-1].channels, num_classes, global_pool, drop_rate, head, device=device, dtype=dtype)
        self.first_conv = f"stem.{stem.first_conv}"
        strides = accumulate((stage.stride for stage in stages), mul, initial=stem.stride)
        next(strides)
        self.feature_info = [
            {"num_chs": stage.channels, "reduction": stride, "module": f"stages.{i}"}
            for i, (stage, stride) in enumerate(zip(stages, strides, strict=True))
        ]

    @classmethod
    def count_maps(cls, arguments: Mapping[str, Any]) -> int:
        return len(with_defaults(cls, arguments)["depths"])

    def maps(self, image: Tensor, stages: Sequence[Stage]) -> Iterator[Tensor]:
        """What each of the first stages gives, (batch, height, width, channels); a family that connects stages
        otherwise than one after another overrides this."""
        x = self.stem(image)
        for stage in stages:
            x = stage(x)
            yield x

    def forward_features(self, image: Tensor) -> Tensor:
        for x in self.maps(image, self.stages):
            last = x
        return self.normed(last)

    def normed(self, x: Tensor) -> Tensor:
        """The last stage's map after the final norm."""
        return self.norm(x)

    def forward_intermediates(
        self,
        image: Tensor,
        indices: Indices = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        check_format(output_fmt)
        taken, last = take_indices(len(self.stages), indices)
        stages = self.stages[: last + 1] if stop_early else self.stages
        found = {}
        for i, x in enumerate(self.maps(image, stages)):
            if i in taken:
                found[i] = as_format(self.normed(x) if norm and i == len(self.stages) - 1 else x, output_fmt)
        maps = [found[i] for i in taken]
        if intermediates_only:
            return maps
        return self.normed(x) if len(stages) == len(self.stages) else x, maps

    def forward_entries(self, image: Tensor) -> list[Tensor]:
        """What the blocks of each stage receive, and the last map, all (batch, channels, height, width).

        The skips of U-shaped networks (VM-UNet, MHS-VM) are these, and not the maps that stages end in.
        """
        entries = []
        for entry, x in self.entries_and_maps(image, self.stages):
            entries.append(entry)
            last = x
        return [as_format(each, "NCHW") for each in (*entries, last)]

    def entries_and_maps(self, image: Tensor, stages: Sequence[Stage]) -> Iterator[tuple[Tensor, Tensor]]:
        """As `maps`, each beside what the stage's blocks receive; a family that overrides one overrides both."""
        x = self.stem(image)
        for stage in stages:
            entry = stage.downsample(x)
            x = stage.run_blocks(entry)
            yield entry, x

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        taken, last = take_indices(len(self.stages), indices)
        ends_early = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if ends_early:
            self.num_features = self.stages[-1].channels
        if prune_norm or ends_early:
            self.norm = nn.Identity()
        if prune_head or ends_early:
            self.remove_head()
        return taken

    def remove_head(self) -> None:
        """Remove the classifier and the pooling, and what a family has between the last map and these."""
        self.reset_classifier(0, "")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping their activations."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups from stem to head, for layer-wise learning rates."""
        blocks = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.norm", (99999,)),  # with the last block, behind which it runs
            (r"^norm", (99999,)),
        ]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}
