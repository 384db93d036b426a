"""timm's contract for networks that keep their resolution: branches side by side (HRNet, arXiv 1908.07919).

The first stage is bottlenecks at stride 4. Each further stage adds a branch at half the resolution of the coarsest; its
units run blocks on every branch and give each branch the sum of all. A neck joins the branches for the classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from vssm.models._contract import Indices, as_format, check_format, take_indices, with_defaults
from vssm.models._pooled import Pooled
from vssm.models._recomputed import recomputed
from vssm.nn import BatchNormStem, ConvNormAct, concrete, drop_path_rates


class Branch(nn.Sequential):
    """Blocks on the map of one resolution; (batch, channels, height, width) in and out, channels-last inside."""

    grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        for block in self:
            x = recomputed(block, x) if self.grad_checkpointing else block(x)
        return x.permute(0, 3, 1, 2)


class Enlarge(ConvNormAct):
    """A 1 x 1 convolution with batch norm, then bilinear interpolation to `factor` times the size."""

    def __init__(self, in_channels: int, channels: int, factor: int, **dd: Any):
        super().__init__(in_channels, channels, apply_act=False, **dd)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(super().forward(x), scale_factor=self.factor, mode="bilinear", align_corners=False)


def reduce(in_channels: int, channels: int, halvings: int, **dd: Any) -> nn.Sequential:
    """As many times a depthwise 3 x 3 convolution of stride 2 and a 1 x 1 one, each with batch norm, ReLU between."""
    steps = []
    for left in reversed(range(halvings)):
        depthwise = ConvNormAct(in_channels, in_channels, 3, 2, groups=in_channels, apply_act=False, **dd)
        pointwise = ConvNormAct(in_channels, in_channels if left else channels, apply_act=left > 0, **dd)
        steps.append(nn.Sequential(depthwise, pointwise))
    return nn.Sequential(*steps)


@register_notrace_module  # reads shapes
class Fusion(nn.ModuleList):
    """ReLU of the sum of all branches' maps at the resolution and width of one.

    Args:
        dims: channels of the branches, finest first.
        branch: number of the one.
    """

    def __init__(self, dims: Sequence[int], branch: int, **dd: Any):
        def path(other: int) -> nn.Module:
            if other > branch:
                return Enlarge(dims[other], dims[branch], 2 ** (other - branch), **dd)
            return reduce(dims[other], dims[branch], branch - other, **dd)  # nothing where they are the same

        super().__init__(path(other) for other in range(len(dims)))
        self.branch = branch

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (batch, channels, height, width) of all branches -> one."""
        height, width = (concrete(size) for size in maps[self.branch].shape[-2:])
        total = maps[self.branch]
        for other, (path, x) in enumerate(zip(self, maps, strict=True)):
            if other == self.branch:
                continue
            x = path(x)
            if x.shape[-2:] != (height, width):  # sides that are no multiple of 32 pixels were rounded up
                x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
            total = total + x
        return F.relu(total)


class Unit(nn.Module):
    """Blocks on every branch, then the fusions; a list of maps (batch, channels, height, width) in and out."""

    def __init__(self, branches: Sequence[Branch], fusions: Sequence[Fusion]):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.fusions = nn.ModuleDict({str(fusion.branch): fusion for fusion in fusions})

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        return [fusion(maps) for fusion in self.fusions.values()]


class Stage(nn.Module):
    """One more branch, from the coarsest map, then the units.

    Args:
        in_dims: channels of the maps that come.
        dims: channels of the branches, one more. Where the two differ, a 3 x 3 convolution changes them.
        units: each of all branches.
    """

    def __init__(self, in_dims: Sequence[int], dims: Sequence[int], units: Sequence[Unit], **dd: Any):
        super().__init__()
        adapt = [
            nn.Identity() if before == after else ConvNormAct(before, after, 3, **dd)
            for before, after in zip(in_dims, dims[:-1], strict=True)
        ]
        self.transition = nn.ModuleList([*adapt, ConvNormAct(in_dims[-1], dims[-1], 3, 2, **dd)])
        self.blocks = nn.Sequential(*units)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        maps = [adapt(x) for adapt, x in zip(self.transition, [*maps, maps[-1]], strict=True)]
        return self.blocks(maps)


def bottleneck(in_channels: int, channels: int, **dd: Any) -> Bottleneck:
    """ResNet's block, with a quarter of the channels inside."""
    shortcut = None
    if in_channels != channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, channels, kernel_size=1, bias=False, **dd), nn.BatchNorm2d(channels, **dd)
        )
    return Bottleneck(in_channels, channels // 4, downsample=shortcut, **dd)


class Neck(nn.Module):
    """HRNet's classification neck: a bottleneck widens each branch; from the finest, halve and add the next one.

    Args:
        dims: channels of the branches; 128, 256, 512 ... after the bottlenecks.
        num_features: channels after the last 1 x 1 convolution.
    """

    def __init__(self, dims: Sequence[int], num_features: int = 2048, **dd: Any):
        super().__init__()
        self.dims = [128 * 2**i for i in range(len(dims))]
        self.increase = nn.ModuleList(bottleneck(dim, wide, **dd) for dim, wide in zip(dims, self.dims, strict=True))
        self.downsample = nn.ModuleList(
            ConvNormAct(finer, coarser, 3, 2, **dd)
            for finer, coarser in zip(self.dims[:-1], self.dims[1:], strict=True)
        )
        self.final = ConvNormAct(self.dims[-1], num_features, **dd)
        for layer in (*self.downsample, self.final):  # official: mmcv's ConvModule, which starts so
            nn.init.kaiming_normal_(layer.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The branches' maps -> as many joint ones, (batch, 128 or 256 ... or num_features, height, width)."""
        joint = [self.increase[0](maps[0])]
        for downsample, increase, x in zip(self.downsample, self.increase[1:], maps[1:], strict=True):
            joint.append(downsample(joint[-1]) + increase(x))
        return [*joint[:-1], self.final(joint[-1])]

    def cut(self, count: int) -> None:
        """Remove what only maps after the first `count` need."""
        if count < len(self.increase):
            self.increase, self.downsample = self.increase[:count], self.downsample[: count - 1]
            self.final = nn.Identity()


class HighResolution(Pooled):
    """Stem, bottlenecks, stages of ever more branches, neck, pooling, classifier.

    Args:
        block: makes one, channels-last map to map, from its channels and its rate of drop path.
        first_dim: channels inside the bottlenecks of the first stage, four times as many outside.
        dims: channels of the branches, at least two.
        depths: number of bottlenecks of the first stage, and of units of each further one.
        blocks: of each branch in each unit.
        neck_maps: the maps of `forward_intermediates` are those of the neck and not those of the branches.
        drop_path_rate: of the last block; it rises linearly, and is the same in all branches.
        in_chans, num_classes, global_pool, drop_rate: as everywhere in timm.

    Raises:
        ValueError: sizes or rates that no model can mean.
    """

    first_conv = f"stem.{BatchNormStem.first_conv}"

    def __init__(
        self,
        block: Callable[[int, float], nn.Module],
        first_dim: int,
        dims: Sequence[int],
        depths: Sequence[int],
        blocks: int,
        neck_maps: bool,
        drop_path_rate: float,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        if len(dims) < 2:
            raise ValueError(f"dims is {tuple(dims)}; expected the channels of two branches or more")
        super().__init__(in_chans)
        self.stem = BatchNormStem(in_chans, [(64, 3, 2), (64, 3, 2)], **dd)
        wide = 4 * first_dim
        self.layer1 = nn.Sequential(*(bottleneck(wide if i else 64, wide, **dd) for i in range(depths[0])))
        rates = iter(drop_path_rates(drop_path_rate, blocks * sum(depths[1:])))

        def unit(dims: Sequence[int]) -> Unit:
            own = [next(rates) for _ in range(blocks)]
            branches = [Branch(*(block(dim, rate) for rate in own)) for dim in dims]
            return Unit(branches, [Fusion(dims, branch, **dd) for branch in range(len(dims))])

        stages, before = [], [wide]
        for count, depth in enumerate(depths[1:], start=2):
            stages.append(Stage(before, dims[:count], [unit(dims[:count]) for _ in range(depth)], **dd))
            before = dims[:count]
        self.stages = nn.Sequential(*stages)
        self.neck = Neck(dims, **dd)
        self.neck_maps = neck_maps
        self.outputs = list(range(len(dims)))  # the branches that the last unit gives
        self.add_head(self.neck.final.conv.out_channels, num_classes, global_pool, drop_rate, **dd)
        last = f"stages.{len(stages) - 1}.blocks.{depths[-1] - 1}.fusions"
        widths = [*self.neck.dims[:-1], self.num_features] if neck_maps else dims
        self.feature_info = [
            {"num_chs": width, "reduction": self.stem.stride * 2**i, "module": "neck" if neck_maps else f"{last}.{i}"}
            for i, width in enumerate(widths)
        ]

    @classmethod
    def count_maps(cls, arguments: Mapping[str, Any]) -> int:
        return len(with_defaults(cls, arguments)["dims"])

    def branches(self, image: Tensor) -> list[Tensor]:
        """(batch, channels, height, width) -> the maps of the branches in `outputs`, laid out likewise."""
        return self.stages([self.layer1(self.stem(image).permute(0, 3, 1, 2))])

    def forward_features(self, image: Tensor) -> Tensor:
        return self.neck(self.branches(image))[-1].permute(0, 2, 3, 1)

    def forward_intermediates(
        self,
        image: Tensor,
        indices: Indices = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """As everywhere; there is no final norm for `norm`, and `stop_early` leaves out the neck where that follows."""
        check_format(output_fmt)
        taken, _ = take_indices(len(self.feature_info), indices)
        branches = self.branches(image)
        without_neck = not self.neck_maps and (stop_early or intermediates_only)
        joint = branches if without_neck else self.neck(branches)
        maps = dict(zip(self.outputs, joint if self.neck_maps else branches, strict=True))
        chosen = [as_format(maps[i].permute(0, 2, 3, 1), output_fmt) for i in taken]
        return chosen if intermediates_only else (joint[-1].permute(0, 2, 3, 1), chosen)

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As everywhere; the neck of maps that are not its own belongs to the head."""
        taken, last = take_indices(len(self.feature_info), indices)
        if not prune_head and last == len(self.feature_info) - 1:
            return taken
        if self.neck_maps:
            self.outputs = list(range(last + 1))
            self.neck.cut(last + 1)
        else:
            self.outputs = sorted(set(taken))
            self.neck = nn.Identity()
        fusions = self.stages[-1].blocks[-1].fusions
        for branch in set(fusions) - {str(output) for output in self.outputs}:
            del fusions[branch]
        self.num_features = self.feature_info[last]["num_chs"]
        self.reset_classifier(0, "")
        return taken

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the branches' blocks in the backward pass instead of keeping their activations."""
        for module in self.modules():
            if isinstance(module, Branch):
                module.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups from stem to head, for layer-wise learning rates."""
        stages = [
            (r"^stages\.(\d+)\.transition", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^neck", (99999,)),
        ]
        coarse_stages = [(r"^stages\.(\d+)", None), (r"^neck", (99999,))]
        return {"stem": r"^stem|^layer1", "stages": coarse_stages if coarse else stages}
