"""HRVMamba: HRNet's branches at four resolutions, with scans of deformably sampled tokens.

After every two blocks each branch receives the sum of all, in its resolution. A block is a convolution of four kernel
sizes, a scan of rows and columns both ways, for which every token first samples where it chooses to, and an MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.models._checkpoint import Renaming, under
from vssm.models._family import Family, Variant
from vssm.models._high_resolution import Fusion, HighResolution, Neck, Unit
from vssm.models._layouts import SS2D_ROWS
from vssm.nn import (
    SS2D,
    Block,
    BranchLayerNorm,
    ChannelGate,
    ChannelsLastConv2d,
    ConditionalPosition,
    DeformableSampling,
    LeanMlp,
    initialise_linear_layers,
)
from vssm.scan import OrderFunction, cross
from vssm.values import widened


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
        if dim % 4:
            raise ValueError(f"there are {dim} channels; expected a multiple of 4, for kernels of four sizes")
        quarter = dim // 4
        self.position = ConditionalPosition(dim, **dd) if position else nn.Identity()
        self.norm = BranchLayerNorm(dim, **dd)
        self.convs = nn.ModuleList(
            ChannelsLastConv2d(quarter, quarter, kernel_size, padding=kernel_size // 2, groups=quarter, **dd)
            for kernel_size in (3, 5, 7, 9)
        )

    def forward(self, x: Tensor) -> Tensor:
        # Laid out one after another at once: a convolution copies channels that it does not find side by side.
        parts = self.norm(self.position(x)).unflatten(-1, (4, -1)).movedim(-2, 0).contiguous()
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
_UNIT = ("stage{s+2}.{m}", "stages.{s}.blocks.{m}")


class HRVMamba(HighResolution):
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

        def block(dim: int, drop_path: float) -> Block:
            return Block(
                dim,
                DSS2D(dim, se_lpu, scan_order, **dd),
                LeanMlp(dim, widened(dim, mlp_ratio, "mlp_ratio"), **dd),
                drop_path,
                position=ESInB(dim, position=se_lpu, **dd),
                position2=ConditionalPosition(dim, **dd) if se_lpu else None,
                **dd,
            )

        super().__init__(
            block,
            first_dim,
            dims,
            depths,
            blocks,
            neck_maps,
            drop_path_rate,
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            **dd,
        )
        initialise_linear_layers(self)


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
        "hrvmamba_nano": {"first_dim": 8, "dims": (16, 24, 32, 48), "depths": (1, 1, 1, 1), "blocks": 1},
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
    timed=("hrvmamba_small",),
)
