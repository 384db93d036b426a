"""EfficientVMamba: atrous selective scans, convolutions beside them, and inverted residuals in the late stages.

A pyramid of four stages. In the first two, a block scans four disjoint sub-grids of every second token once each, so
that all four directions together cost as much as one full scan, and adds a depthwise convolution; the last two are
MobileNetV2's inverted residuals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, SqueezeExcite
from torch import Tensor, nn

from vssm.models._checkpoint import Renaming, under
from vssm.models._family import Family, Variant
from vssm.models._layouts import BLOCK, PATCH_PYRAMID, SS2D_ROWS
from vssm.models._pyramid import Pyramid, make_stages
from vssm.nn import (
    SS2D,
    BranchLayerNorm,
    ChannelGate,
    ConvNormAct,
    PatchMerging,
    PatchStem,
    StreamLayerNorm,
    initialise_linear_layers,
)
from vssm.scan import OrderFunction, atrous

every_second = atrous(2)


class LocalBranch(nn.Module):
    """A 3 x 3 depthwise convolution, batch norm, GELU, a 1 x 1 one; (batch, height, width, dim), both ways."""

    def __init__(self, dim: int, **dd: Any):
        super().__init__()
        self.depthwise = ConvNormAct(dim, dim, kernel_size=3, groups=dim, bias=True, act_layer=nn.GELU, **dd)
        self.pointwise = nn.Conv2d(dim, dim, kernel_size=1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class EVSSBlock(nn.Module):
    """x + scan and convolution of norm(x), each weighted by one shared channel gate; (batch, height, width, dim)."""

    def __init__(self, mixer: nn.Module, dim: int, drop_path: float, **dd: Any):
        super().__init__()
        self.norm = BranchLayerNorm(dim, **dd)
        self.mixer = mixer
        self.local = LocalBranch(dim, **dd)
        self.attention = ChannelGate(dim, norm=BranchLayerNorm, act=nn.GELU, bias=True, **dd)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return x + self.drop_path(self.attention(self.mixer(normed)) + self.attention(self.local(normed)))


class InvertedResidual(nn.Module):
    """x + narrow(squeeze(depthwise(widen(x)))) with batch norm (MobileNetV2, arXiv 1801.04381).

    Maps come and go channels-last; the convolutions see the same memory as (batch, dim, height, width).
    """

    def __init__(self, dim: int, drop_path: float, expansion: int = 4, reduction: int = 8, **dd: Any):
        super().__init__()
        hidden = expansion * dim
        self.widen = ConvNormAct(dim, hidden, **dd)
        self.depthwise = ConvNormAct(hidden, hidden, kernel_size=3, groups=hidden, **dd)
        self.squeeze = SqueezeExcite(hidden, rd_channels=hidden // reduction, **dd)
        self.narrow = ConvNormAct(hidden, dim, apply_act=False, **dd)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(self.squeeze(self.depthwise(self.widen(x.permute(0, 3, 1, 2)))))
        return x + self.drop_path(y.permute(0, 2, 3, 1))


_SCANNED = PATCH_PYRAMID + Renaming(
    under(
        *BLOCK,
        [
            ("op", "mixer"),
            *under("op", "mixer", SS2D_ROWS),
            ("conv_branch.0", "local.depthwise.conv"),
            ("conv_branch.1", "local.depthwise.bn"),
            ("conv_branch.3", "local.pointwise"),
            ("se", "attention"),
            ("se.global_reduce", "attention.reduce"),
            ("se.channel_select", "attention.expand"),
        ],
    ),
    outputs=(("layers.{i}", "stages.{i+1}.downsample"),),
)
_INVERTED_RESIDUAL = (
    ("conv_pw.0", "widen.conv"),
    ("conv_pw.1", "widen.bn"),
    ("conv_dw.0", "depthwise.conv"),
    ("conv_dw.1", "depthwise.bn"),
    ("se.conv_reduce", "squeeze.fc1"),
    ("se.conv_expand", "squeeze.fc2"),
    ("conv_pw2.0", "narrow.conv"),
    ("conv_pw2.1", "narrow.bn"),
)


def _convolved(depths: Sequence[int], scanned_stages: int) -> Renaming:
    """The late stages, which are one sequence there: a permutation, the blocks, a permutation, the downsampling."""
    late = range(scanned_stages, len(depths))
    return Renaming(
        rows=(
            *(
                row
                for i in late
                for row in under(f"layers.{i}.{{j+1}}", f"stages.{i}.blocks.{{j}}", _INVERTED_RESIDUAL)
            ),
            *((f"layers.{i}.{depths[i] + 2}", f"stages.{i + 1}.downsample") for i in late),
        ),
        outputs=tuple((f"layers.{i}.{depths[i] + 1}", f"stages.{i}.blocks") for i in late),
    )


class EfficientVMamba(Pyramid):
    """EfficientVMamba.

    Args:
        dims, depths: channels and number of blocks of each stage.
        scanned_stages: how many stages, from the first, scan; the others are inverted residuals.
        state, expansion: of the scans, see SS2D.
        scan_order: a function (height, width) -> ScanOrder; here the atrous scan of every second token.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> model = EfficientVMamba(dims=(16, 32), depths=(1, 1), scanned_stages=1, num_classes=10)
    >>> model(torch.randn(2, 3, 65, 40)).shape
    torch.Size([2, 10])
    """

    renaming = _SCANNED
    first_conv = "stem.proj"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: Sequence[int] = (48, 96, 192, 384),
        depths: Sequence[int] = (2, 2, 4, 2),
        scanned_stages: int = 2,
        state: int = 16,
        expansion: float = 2.0,
        scan_order: OrderFunction = every_second,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}

        def block(stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
            if stage >= scanned_stages:
                return InvertedResidual(dim, drop_path, **dd)
            mixer = SS2D(dim, state, expansion, conv_bias=True, gated=True, scan_order=scan_order, **dd)
            return EVSSBlock(mixer, dim, drop_path, **dd)

        stages = make_stages(block, dims, depths, PatchMerging, drop_path_rate, **dd)
        super().__init__(
            PatchStem(in_chans, dims[0], norm=StreamLayerNorm, **dd),
            stages,
            nn.LayerNorm(dims[-1], **dd),
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            **dd,
        )
        self.renaming = _SCANNED + _convolved(depths, scanned_stages)
        initialise_linear_layers(self)


def _variant(size: str, title: str, **arguments: Any) -> Variant:
    folder = f"https://huggingface.co/TerryPei/EfficientVMamba-{size.capitalize()}/resolve/main/"
    return Variant(f"efficientvmamba_{size}", title, arguments, f"{folder}efficient_vmamba_{size}.ckpt")


FAMILY = Family(
    title="EfficientVMamba",
    model=EfficientVMamba,
    paper="2403.09977",
    repository="https://github.com/TerryPei/EfficientVMamba",
    commit="0bc5ee288b402d648641f5494b73e9d152e0c62b",
    license="apache-2.0",
    owner="terrypei",
    strides=(4, 8, 16, 32),
    small={"efficientvmamba_tiny": {"dims": (16, 24, 32, 40), "depths": (1, 1, 1, 1), "scanned_stages": 1}},
    variants=(
        _variant("tiny", "EfficientVMamba-T", dims=(48, 96, 192, 384), depths=(2, 2, 4, 2)),
        _variant("small", "EfficientVMamba-S", dims=(64, 128, 256, 512), depths=(2, 2, 4, 2)),
        _variant("base", "EfficientVMamba-B", dims=(96, 192, 384, 768), depths=(2, 2, 9, 2)),
    ),
    parts=(
        ("efficient 2D scanning (ES2D)", "SS2D with EfficientScan", SS2D),
        ("atrous sampling with step 2", "EfficientScan, EfficientMerge", every_second),
        ("squeeze-excitation (SE) of the branches", "BiAttn", ChannelGate),
        ("convolution branch", "conv_branch", LocalBranch),
        ("efficient visual state space (EVSS) block", "VSSBlock", EVSSBlock),
        ("inverted residual (InRes) block", "InvertedResidual", InvertedResidual),
        ("EfficientVMamba", "EfficientVSSM", EfficientVMamba),
    ),
    timed=("efficientvmamba_base",),
)
