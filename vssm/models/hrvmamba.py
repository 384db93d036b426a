"""HRVMamba: branches at four resolutions side by side, which exchange their maps again and again (HRNet's layout).

The first stage is two of ResNet's bottlenecks at stride 4. Each further stage adds a branch at half the resolution; its
units run two blocks on every branch and give each branch the sum of all. A block is a convolution of four kernel sizes,
a scan of deformably sampled tokens, and an MLP. A neck joins the branches for the classifier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, register_notrace_module
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from vssm.models._arguments import check_arguments
from vssm.models._checkpoint import Renaming, under
from vssm.models._contract import Indices, as_format, check_format, with_defaults
from vssm.models._family import Family, Variant
from vssm.models._layouts import SS2D_ROWS
from vssm.models._pooled import Pooled
from vssm.nn import (
    SS2D,
    BatchNormStem,
    Block,
    BranchLayerNorm,
    ChannelGate,
    ChannelsLastConv2d,
    ConditionalPosition,
    DeformableSampling,
    LeanMlp,
    concrete,
    initialise_linear_layers,
)
from vssm.scan import OrderFunction, cross


@register_notrace_module  # iterates over parts of a map
class ESInB(nn.Module):
    """Enhanced spatial inductive bias: x + GELU of four depthwise convolutions of norm(x), their channels shuffled.

    A quarter of the channels each has kernels of 3, 5, 7 and 9. (batch, height, width, dim) in and out.

    Args:
        dim: channels, a multiple of 4.
        position: add a depthwise convolution of the map to what is normed.
    """

    def __init__(self, dim: int, position: bool, **dd: Any):
        super().__init__()
        quarter = dim // 4
        self.position = ConditionalPosition(dim, **dd) if position else nn.Identity()
        self.norm = BranchLayerNorm(dim, **dd)
        self.convs = nn.ModuleList(
            ChannelsLastConv2d(quarter, quarter, kernel_size, padding=kernel_size // 2, groups=quarter, **dd)
            for kernel_size in (3, 5, 7, 9)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = self.norm(self.position(x)).chunk(4, dim=-1)
        # Stacked last and flattened, the quarters' channels take turns.
        shuffled = torch.stack([conv(part) for conv, part in zip(self.convs, parts, strict=True)], dim=-1).flatten(-2)
        # official: with `position` too, the map itself is added and not the one that was normed; here: the same.
        return x + F.gelu(shuffled)


@register_notrace_module
class DSS2D(SS2D):
    """Deformable SS2D: samples from anywhere take the place of the depthwise convolution.

    Args:
        dim: channels of the map; twice as many inside.
        channel_gate: squeeze and excitation in front of the last projection.
        scan_order: a function (height, width) -> ScanOrder.
    """

    def __init__(self, dim: int, channel_gate: bool = False, scan_order: OrderFunction = cross, **dd: Any):
        super().__init__(dim, expansion=2.0, scan_order=scan_order, **dd)
        inner = 2 * dim
        # official: a convolution in front of the prediction exactly for such widths; only the base model has them.
        self.conv = DeformableSampling(inner, groups=self.scan.rank, depthwise=dim % 80 == 0, **dd)
        self.channel_gate = ChannelGate(inner, **dd) if channel_gate else nn.Identity()

    def mix(self, x: Tensor) -> Tensor:
        return self.channel_gate(super().mix(x))


class Branch(nn.Sequential):
    """Blocks on the map of one resolution; (batch, channels, height, width) in and out, channels-last inside."""

    grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = checkpoint_seq(self, x) if self.grad_checkpointing else super().forward(x)
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
        self.units = nn.Sequential(*units)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        maps = [adapt(x) for adapt, x in zip(self.transition, [*maps, maps[-1]], strict=True)]
        return self.units(maps)


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


_BLOCK = (
    ("cpe1", "position.position"),
    ("norm0", "position.norm"),
    ("conv2d.{k}", "position.convs.{k}"),
    ("cpe2", "position2"),
    ("op", "mixer"),
    *under("op", "mixer", SS2D_ROWS),
    ("op.conv2d.offset_mask_dw", "mixer.conv.depthwise"),
    ("op.se.fc.0", "mixer.channel_gate.reduce"),
    ("op.se.fc.2", "mixer.channel_gate.expand"),
)
_FUSION = (
    ("0", "conv"),
    ("1", "bn"),
    ("{k}.0", "{k}.0.conv"),
    ("{k}.1", "{k}.0.bn"),
    ("{k}.2", "{k}.1.conv"),
    ("{k}.3", "{k}.1.bn"),
)
_UNIT = ("stage{s+2}.{m}", "stages.{s}.units.{m}")


class HRVMamba(Pooled):
    """HRVMamba.

    The maps of `forward_intermediates` are those of the branches, all from the end of the network.

    Args:
        first_dim: channels inside the bottlenecks of the first stage, four times as many outside.
        dims: channels of the branches, multiples of 4, at strides 4, 8, 16 ...; at least two.
        depths: number of bottlenecks of the first stage, and of units of each further one.
        blocks: of each branch in each unit.
        mlp_ratio: hidden channels per channel of the MLPs.
        se_lpu: squeeze and excitation in the mixers, and local perception units (3 x 3 depthwise convolutions) in both
            halves of a block: the two small models.
        neck_maps: the maps of `forward_intermediates` are those of the neck, which the official segmentor reads.
        scan_order: a function (height, width) -> ScanOrder.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate, the
            same in all branches.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    Raises:
        ValueError: sizes or rates that no model can mean.

    >>> model = HRVMamba(first_dim=8, dims=(8, 16), depths=(1, 1), num_classes=10)
    >>> model(torch.randn(2, 3, 65, 40)).shape
    torch.Size([2, 10])
    """

    renaming = Renaming(
        rows=(
            *((f"conv{i + 1}", f"stem.layers.{i}.conv") for i in range(2)),
            *((f"bn{i + 1}", f"stem.layers.{i}.bn") for i in range(2)),
            ("transition{s+1}.{i}.0.0", "stages.{s}.transition.{i}.conv"),
            ("transition{s+1}.{i}.0.1", "stages.{s}.transition.{i}.bn"),
            # A branch that only changes its width, which the first does alone, is one level less deep.
            ("transition1.0.0", "stages.0.transition.0.conv"),
            ("transition1.0.1", "stages.0.transition.0.bn"),
            _UNIT,
            *under(f"{_UNIT[0]}.branches.{{i}}.{{j}}", f"{_UNIT[1]}.branches.{{i}}.{{j}}", _BLOCK),
            *under(f"{_UNIT[0]}.fuse_layers.{{i}}.{{j}}", f"{_UNIT[1]}.fusions.{{i}}.{{j}}", _FUSION),
            ("neck.increase_layers.{i}.0", "neck.increase.{i}"),
            ("neck.downsample_layers", "neck.downsample"),
            ("neck.final_layer", "neck.final"),
            ("head", "head.fc"),
        ),
    )
    first_conv = f"stem.{BatchNormStem.first_conv}"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        first_dim: int = 64,
        dims: Sequence[int] = (80, 160, 320, 640),
        depths: Sequence[int] = (2, 1, 4, 2),
        blocks: int = 2,
        mlp_ratio: float = 2.0,
        se_lpu: bool = False,
        neck_maps: bool = False,
        scan_order: OrderFunction = cross,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        check_arguments({"dims": dims, "depths": depths, "blocks": blocks, "drop_path_rate": drop_path_rate})
        if len(dims) < 2 or any(dim % 4 for dim in dims):
            raise ValueError(f"dims is {tuple(dims)}; expected the channels of two branches or more, multiples of 4")
        super().__init__(in_chans)

        def block(dim: int, drop_path: float) -> Block:
            return Block(
                dim,
                DSS2D(dim, se_lpu, scan_order, **dd),
                LeanMlp(dim, int(mlp_ratio * dim), **dd),
                drop_path,
                position=ESInB(dim, position=se_lpu, **dd),
                position2=ConditionalPosition(dim, **dd) if se_lpu else None,
                **dd,
            )

        def unit(dims: Sequence[int], rates: Sequence[float]) -> Unit:
            branches = [Branch(*(block(dim, rate) for rate in rates)) for dim in dims]
            return Unit(branches, [Fusion(dims, branch, **dd) for branch in range(len(dims))])

        self.stem = BatchNormStem(in_chans, [(64, 3, 2), (64, 3, 2)], **dd)
        wide = 4 * first_dim
        self.layer1 = nn.Sequential(*(bottleneck(wide if i else 64, wide, **dd) for i in range(depths[0])))
        rates = torch.linspace(0, drop_path_rate, blocks * sum(depths[1:]), device="cpu")
        rates_of_units = iter(rates.view(-1, blocks).tolist())
        self.stages = nn.Sequential(
            *(
                Stage(
                    dims[:i] if i > 1 else [wide],
                    dims[: i + 1],
                    [unit(dims[: i + 1], next(rates_of_units)) for _ in range(depth)],
                    **dd,
                )
                for i, depth in enumerate(depths)
                if i > 0
            )
        )
        self.neck = Neck(dims, **dd)
        self.neck_maps = neck_maps
        self.outputs = list(range(len(dims)))  # the branches that the last unit gives
        self.add_head(self.neck.final.conv.out_channels, num_classes, global_pool, drop_rate, **dd)
        last = f"stages.{len(depths) - 2}.units.{depths[-1] - 1}.fusions"
        widths = [*self.neck.dims[:-1], self.num_features] if neck_maps else dims
        self.feature_info = [
            {"num_chs": width, "reduction": self.stem.stride * 2**i, "module": "neck" if neck_maps else f"{last}.{i}"}
            for i, width in enumerate(widths)
        ]
        initialise_linear_layers(self)

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
        taken, _ = feature_take_indices(len(self.feature_info), indices)
        branches = self.branches(image)
        without_neck = not self.neck_maps and (stop_early or intermediates_only)
        joint = branches if without_neck else self.neck(branches)
        maps = zip(self.outputs, joint if self.neck_maps else branches, strict=True)
        chosen = [as_format(x.permute(0, 2, 3, 1), output_fmt) for i, x in maps if i in taken]
        return chosen if intermediates_only else (joint[-1].permute(0, 2, 3, 1), chosen)

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As everywhere; the neck of maps that are not its own belongs to the head."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        if not prune_head and last == len(self.feature_info) - 1:
            return taken
        if self.neck_maps:
            self.outputs = list(range(last + 1))
            self.neck.cut(last + 1)
        else:
            self.outputs = sorted(taken)
            self.neck = nn.Identity()
        fusions = self.stages[-1].units[-1].fusions
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
            (r"^stages\.(\d+)\.units\.(\d+)", None),
            (r"^neck", (99999,)),
        ]
        coarse_stages = [(r"^stages\.(\d+)", None), (r"^neck", (99999,))]
        return {"stem": r"^stem", "first": r"^layer1", "stages": coarse_stages if coarse else stages}

    def no_weight_decay(self) -> set[str]:
        # official: one-dimensional tensors and biases, of which D is one there and two-dimensional here; as VMamba.
        return self.parameters_ending("D")


def _variant(size: str, title: str, file: str, pixels: int, **arguments: Any) -> Variant:
    weights = f"https://drive.google.com/file/d/{file}/view?usp=sharing"
    cfg = {"input_size": (3, pixels, pixels), "pool_size": (pixels // 32, pixels // 32)}
    return Variant(f"hrvmamba_{size}", title, arguments, weights, cfg=cfg)


FAMILY = Family(
    title="HRVMamba",
    model=HRVMamba,
    paper="2410.03174",
    repository="https://github.com/zhanghao5201/HRVMamba",
    commit="7222bc4ffab5541f3fe3d95b03e300ba4ff6dab2",
    license="unknown",
    owner="zhanghao5201",
    strides=(4, 8, 16, 32),
    small={
        "hrvmamba_nano": {"dims": (16, 24, 32, 48), "depths": (1, 1, 1, 1), "blocks": 1, "first_dim": 8},
    },
    variants=(
        _variant(
            "nano",
            "HRVMamba-N",
            "1vjoEmX8NGh3D4aIB2zTP6eKN23zXmd7i",
            256,
            first_dim=16,
            dims=(8, 16, 32, 64),
            se_lpu=True,
        ),
        _variant(
            "tiny",
            "HRVMamba-T",
            "18MnK9b-Ip7RLevdAzzPBFNIe_BNHg2Ry",
            256,
            first_dim=32,
            dims=(16, 32, 64, 128),
            se_lpu=True,
        ),
        _variant("small", "HRVMamba-S", "1Gxo0Pxg2D7x3dU0P2AZ2YGEFS-7XMxIX", 256, dims=(32, 64, 128, 256)),
        _variant("base", "HRVMamba-B", "1jbXjvCBdjgraeEaJrDjD2wStpxJtCEuy", 224, dims=(80, 160, 320, 640)),
    ),
    parts=(
        ("dynamic visual state space (DVSS) block", "HRVmambaBlock", Block),
        ("enhanced spatial inductive bias (ESInB) block", "conv2d and norm0 of HRVmambaBlock", ESInB),
        ("deformable 2D-selective-scan (DSS2D) block", "SS2D", DSS2D),
        ("deformable convolution (DCNv4)", "DCNv4", DeformableSampling),
        ("multi-resolution parallel module", "HRVmambaModule", Unit),
        ("fusion of the resolutions", "fuse_layers", Fusion),
        ("classification neck", "HRFuseScales", Neck),
        ("HRVMamba", "HRVmamba, HRVmamba_se_lpu", HRVMamba),
    ),
)
