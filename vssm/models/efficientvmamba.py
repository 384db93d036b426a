"""EfficientVMamba: atrous selective scans, convolutions beside them, and inverted residuals in the late stages.

Paper: arXiv 2403.09977 (AAAI 2025). Official code and weights: https://github.com/TerryPei/EfficientVMamba at
0bc5ee288b402d648641f5494b73e9d152e0c62b, Apache-2.0 (as its README says).

A pyramid of four stages. In the first two, a block scans four disjoint sub-grids of every second token once each, so
that all four directions together cost as much as one full scan, and adds a depthwise convolution; the last two are
MobileNetV2's inverted residuals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import ConvNormAct, DropPath, SqueezeExcite
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from vssm.models import vmamba
from vssm.models._base import Pyramid, build, make_stages
from vssm.models._cfg import imagenet_cfg
from vssm.nn import BranchLayerNorm, PatchMerging, PatchStem, StreamLayerNorm
from vssm.scan import OrderFunction, atrous

every_second = atrous(2)


class BiAttention(nn.Module):
    """Squeeze and excitation of a map by its normed mean; (batch, height, width, dim), both ways."""

    def __init__(self, dim: int, reduction: int = 8, **dd: Any):
        super().__init__()
        self.norm = BranchLayerNorm(dim, **dd)
        self.reduce = nn.Linear(dim, dim // reduction, **dd)
        self.expand = nn.Linear(dim // reduction, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.norm(x).mean((1, 2), keepdim=True)
        return x * torch.sigmoid(self.expand(F.gelu(self.reduce(mean))))


class LocalBranch(nn.Module):
    """A 3 x 3 depthwise convolution, batch norm, GELU, a 1 x 1 one; (batch, height, width, dim), both ways."""

    def __init__(self, dim: int, **dd: Any):
        super().__init__()
        self.depthwise = ConvNormAct(dim, dim, kernel_size=3, groups=dim, bias=True, act_layer=nn.GELU, **dd)
        self.pointwise = nn.Conv2d(dim, dim, kernel_size=1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class EVSSBlock(nn.Module):
    """x + scan and convolution of norm(x), each weighted by one shared BiAttention; (batch, height, width, dim)."""

    def __init__(self, mixer: vmamba.SS2D, dim: int, drop_path: float, **dd: Any):
        super().__init__()
        self.norm = BranchLayerNorm(dim, **dd)
        self.mixer = mixer
        self.local = LocalBranch(dim, **dd)
        self.attention = BiAttention(dim, **dd)
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


class EfficientVMamba(Pyramid):
    """EfficientVMamba.

    Args:
        dims, depths: channels and number of blocks of each stage.
        scanned_stages: how many stages, from the first, scan; the others are inverted residuals.
        state, expansion: of the scans, see vmamba.SS2D.
        scan_order: a function (height, width) -> ScanOrder; here the atrous scan of every second token.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> model = EfficientVMamba(dims=(16, 32), depths=(1, 1), scanned_stages=1, num_classes=10)
    >>> model(torch.randn(2, 3, 65, 40)).shape
    torch.Size([2, 10])
    """

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

        def block(stage: int, dim: int, drop_path: float) -> nn.Module:
            if stage >= scanned_stages:
                return InvertedResidual(dim, drop_path, **dd)
            mixer = vmamba.SS2D(dim, state, expansion, conv_bias=True, gated=True, scan_order=scan_order, **dd)
            return EVSSBlock(mixer, dim, drop_path, **dd)

        stages = make_stages(block, dims, depths, PatchMerging, drop_path_rate, **dd)
        super().__init__(
            PatchStem(in_chans, dims[0], norm=StreamLayerNorm, **dd),
            stages,
            nn.LayerNorm(dims[-1], **dd),
            4,
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            **dd,
        )
        vmamba.initialise_linear_layers(self)

    def no_weight_decay(self) -> set[str]:
        # official: one-dimensional tensors and biases, of which D is one there and two-dimensional here; as VMamba.
        return self.parameters_ending("D")

    def convert_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return checkpoint_filter_fn(state, self)


# Official names that VMamba does not have -> ours, in this order.
_RENAMED = [
    (r"\.conv_branch\.0\.", ".local.depthwise.conv."),
    (r"\.conv_branch\.1\.", ".local.depthwise.bn."),
    (r"\.conv_branch\.3\.", ".local.pointwise."),
    (r"\.se\.norm\.", ".attention.norm."),
    (r"\.se\.global_reduce\.", ".attention.reduce."),
    (r"\.se\.channel_select\.", ".attention.expand."),
    (r"\.conv_pw\.0\.", ".widen.conv."),
    (r"\.conv_pw\.1\.", ".widen.bn."),
    (r"\.conv_dw\.0\.", ".depthwise.conv."),
    (r"\.conv_dw\.1\.", ".depthwise.bn."),
    (r"\.se\.conv_reduce\.", ".squeeze.fc1."),
    (r"\.se\.conv_expand\.", ".squeeze.fc2."),
    (r"\.conv_pw2\.0\.", ".narrow.conv."),
    (r"\.conv_pw2\.1\.", ".narrow.bn."),
]


def checkpoint_filter_fn(state: dict[str, Tensor], model: EfficientVMamba) -> dict[str, Tensor]:
    """Official EfficientVMamba weights, or ours, as a state dict of `model`."""

    def place(found: re.Match) -> str:
        """Late stages are one sequence there: a permutation, the blocks from 1 on, a permutation, downsampling."""
        stage, position = int(found[1]), int(found[2])
        depth = len(model.stages[stage].blocks) if stage < len(model.stages) else 0
        return f"layers.{stage}.blocks.{position - 1}" if position <= depth else f"layers.{stage}.downsample"

    converted = {}
    for name, value in state.items():
        for pattern, ours in _RENAMED:
            name = re.sub(pattern, ours, name)
        converted[re.sub(r"^layers\.(\d+)\.(\d+)(?=\.)", place, name)] = value
    return vmamba.checkpoint_filter_fn(converted, model)


def _cfg(size: str) -> dict[str, Any]:
    file = f"EfficientVMamba-{size.capitalize()}/resolve/main/efficient_vmamba_{size}.ckpt"
    return imagenet_cfg(
        EfficientVMamba.first_conv,
        EfficientVMamba.classifier,
        url=f"https://huggingface.co/TerryPei/{file}",
        license="apache-2.0",
        origin_url="https://github.com/TerryPei/EfficientVMamba",
        paper_ids="arXiv:2403.09977",
    )


default_cfgs = generate_default_cfgs(
    {f"efficientvmamba_{size}.terrypei_in1k": _cfg(size) for size in ("tiny", "small", "base")}
)


def _create_efficientvmamba(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build(EfficientVMamba, variant, pretrained, default_indices=tuple(range(len(kwargs["depths"]))), **kwargs)


@register_model
def efficientvmamba_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EfficientVMamba-T: 6.5 M parameters, 76.5 % top-1 (published)."""
    size = {"dims": (48, 96, 192, 384), "depths": (2, 2, 4, 2)}
    return _create_efficientvmamba("efficientvmamba_tiny", pretrained, **{**size, **kwargs})


@register_model
def efficientvmamba_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EfficientVMamba-S: 11.3 M parameters, 78.7 % top-1 (published)."""
    size = {"dims": (64, 128, 256, 512), "depths": (2, 2, 4, 2)}
    return _create_efficientvmamba("efficientvmamba_small", pretrained, **{**size, **kwargs})


@register_model
def efficientvmamba_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EfficientVMamba-B: 33.7 M parameters, 81.8 % top-1 (published)."""
    size = {"dims": (96, 192, 384, 768), "depths": (2, 2, 9, 2)}
    return _create_efficientvmamba("efficientvmamba_base", pretrained, **{**size, **kwargs})
