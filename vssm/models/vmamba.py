"""VMamba: visual state space model.

Paper: arXiv 2401.10166 (NeurIPS 2024). Official code and weights: https://github.com/MzeroMiko/VMamba at
2ed52ead062a51a64521ed3871d52914bf532876, MIT.

A pyramid of four stages; every block scans its map along rows and columns, both ways, all four directions reading
the same map and their outputs summed. "vanilla" is the first version: a gate, 16 states, no MLP.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, register_notrace_module
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from vssm.models._base import Pyramid, build, make_stages
from vssm.models._cfg import imagenet_cfg
from vssm.nn import (
    BranchLayerNorm,
    ChannelsLastConv2d,
    ConvDownsample,
    ConvStem,
    LeanMlp,
    OrderTable,
    PatchMerging,
    PatchStem,
    SelectiveScan,
    StreamLayerNorm,
)
from vssm.scan import OrderFunction, cross


@register_notrace_module
class SS2D(nn.Module):
    """Projection, depthwise convolution, scan in every direction of an order, norm, projection back.

    Args:
        dim: channels of the map; `expansion` times as many inside.
        state: size of the state-space model's state.
        expansion: inner channels per outer channel.
        conv_bias: whether the depthwise convolution has a bias.
        gated: multiply the normed output by silu of a second projection.
        scan_order: a function (height, width) -> ScanOrder.
    """

    def __init__(
        self,
        dim: int,
        state: int = 1,
        expansion: float = 1.0,
        conv_bias: bool = False,
        gated: bool = False,
        scan_order: OrderFunction = cross,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        inner = int(expansion * dim)
        self.gated = gated
        self.order_table = OrderTable(scan_order)
        self.in_proj = nn.Linear(dim, 2 * inner if gated else inner, bias=False, **dd)
        self.conv = ChannelsLastConv2d(inner, inner, kernel_size=3, padding=1, groups=inner, bias=conv_bias, **dd)
        self.scan = SelectiveScan(inner, scan_order(2, 2).directions, state, rank=math.ceil(dim / 16), **dd)
        self.norm = BranchLayerNorm(inner, **dd)
        self.out_proj = nn.Linear(inner, dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim), both ways."""
        _, height, width, _ = x.shape
        order = self.order_table(height, width, x.device)
        x = self.in_proj(x)
        if self.gated:
            x, z = x.chunk(2, dim=-1)
        x = F.silu(self.conv(x))
        directions = self.scan(x.flatten(1, 2), order)
        y = self.norm(directions, merge=True).view_as(x)
        return self.out_proj(y * F.silu(z) if self.gated else y)


class VSSBlock(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm2(x)) where there is an MLP; (batch, height, width, dim), both ways."""

    def __init__(self, mixer: SS2D, dim: int, mlp_ratio: float, drop_path: float, **dd: Any):
        super().__init__()
        self.norm = BranchLayerNorm(dim, **dd)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path)
        self.mlp = None
        if mlp_ratio > 0:
            self.norm2 = BranchLayerNorm(dim, **dd)
            self.mlp = LeanMlp(dim, int(mlp_ratio * dim), **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mixer(self.norm(x)))
        if self.mlp is not None:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class VMamba(Pyramid):
    """VMamba.

    Args:
        dims, depths: channels and number of blocks of each stage.
        state, expansion, conv_bias, gated, mlp_ratio: of the blocks, see SS2D; no MLP for ratio 0.
        stem, downsample: what makes them from numbers of channels: ConvStem and ConvDownsample, or PatchStem and
            PatchMerging.
        scan_order: a function (height, width) -> ScanOrder.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> model = VMamba(dims=(16, 32), depths=(1, 1), num_classes=10)
    >>> model(torch.randn(1, 3, 65, 40)).shape
    torch.Size([1, 10])
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 8, 2),
        state: int = 1,
        expansion: float = 1.0,
        conv_bias: bool = False,
        gated: bool = False,
        mlp_ratio: float = 4.0,
        stem: Callable[..., ConvStem | PatchStem] = ConvStem,
        downsample: Callable[..., nn.Module] = ConvDownsample,
        scan_order: OrderFunction = cross,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}

        def block(stage: int, dim: int, drop_path: float) -> VSSBlock:
            mixer = SS2D(dim, state, expansion, conv_bias, gated, scan_order, **dd)
            return VSSBlock(mixer, dim, mlp_ratio, drop_path, **dd)

        stages = make_stages(block, dims, depths, downsample, drop_path_rate, **dd)
        super().__init__(
            stem(in_chans, dims[0], **dd),
            stages,
            nn.LayerNorm(dims[-1], **dd),
            4,
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            **dd,
        )
        self.first_conv = f"stem.{self.stem.first_conv}"
        initialise_linear_layers(self)

    def no_weight_decay(self) -> set[str]:
        # official: one-dimensional tensors and biases, of which D is one there and two-dimensional here. A_log and
        # dt_bias are decayed: both are two-dimensional there, and the official flag on A_log is read by no optimiser.
        return self.parameters_ending("D")

    def convert_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return checkpoint_filter_fn(state, self)


def initialise_linear_layers(model: nn.Module) -> None:
    """Linear layers as in the official code and in the families that come from it; the rest stays as it starts."""
    # official: trunc_normal_, cut at +-2. Here: normal_, because a cut 100 deviations away cuts nothing, while in
    # float32 one draw in 2^24 comes out of trunc_normal_ as -2 itself.
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# Official names -> ours, in this order. The first group are names of v0, which the official code renames too.
_RENAMED = [
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".op."),
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"^head\.(?=weight|bias)", "classifier.head."),
    (r"^classifier\.norm\.", "norm."),
    (r"^classifier\.head\.", "head.fc."),
    (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
    (r"\.op\.x_proj_weight$", ".mixer.scan.x_proj"),
    (r"\.op\.dt_projs_weight$", ".mixer.scan.dt_proj"),
    (r"\.op\.dt_projs_bias$", ".mixer.scan.dt_bias"),
    (r"\.op\.A_logs$", ".mixer.scan.A_log"),
    (r"\.op\.Ds$", ".mixer.scan.D"),
    (r"\.op\.conv2d\.", ".mixer.conv."),
    (r"\.op\.out_norm\.", ".mixer.norm."),
    (r"\.op\.", ".mixer."),
    (r"\.downsample\.1\.", ".downsample.conv."),
    (r"\.downsample\.3\.", ".downsample.norm."),
]
_STEM = {
    "stem.conv1": {"0": "conv1", "2": "norm1", "5": "conv2", "7": "norm2"},
    "stem.proj": {"0": "proj", "2": "norm"},
}


def checkpoint_filter_fn(state: dict[str, Tensor], model: Pyramid) -> dict[str, Tensor]:
    """Official VMamba weights (of any version), or ours, as a state dict of `model`.

    `model` may be of another family that comes from VMamba's code and shares its names.
    """
    expected = {name: value.shape for name, value in model.state_dict().items()}
    stem = _STEM[model.first_conv]
    converted = {}
    for name, value in state.items():
        for pattern, ours in _RENAMED:
            name = re.sub(pattern, ours, name)
        # official: the downsampling ends a stage; here: it begins the next one, so that a stage ends in its map.
        name = re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"stages.{int(found[1]) + 1}.downsample", name)
        name = re.sub(r"^patch_embed\.(\d+)", lambda found: "stem." + stem.get(found[1], found[1]), name)
        # official: 1 x 1 convolutions, directions and channels in one dimension; here: matrices, directions apart.
        flat = (value.dim() == 4 and value.shape[2:] == (1, 1)) or name.endswith(("scan.A_log", "scan.D"))
        if flat and name in expected and value.numel() == expected[name].numel():
            value = value.reshape(expected[name])
        converted[name] = value
    return converted


def _cfg(file: str, first_conv: str = "stem.conv1") -> dict[str, Any]:
    return imagenet_cfg(
        first_conv,
        VMamba.classifier,
        url=f"https://github.com/MzeroMiko/VMamba/releases/download/{file}",
        license="mit",
        origin_url="https://github.com/MzeroMiko/VMamba",
        paper_ids="arXiv:2401.10166",
    )


_TINY_S1L8 = "%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth"
_SMALL_S2L15 = "%23v2cls/vssm_small_0229_ckpt_epoch_222.pth"
_BASE_S2L15 = "%23v2cls/vssm_base_0229_ckpt_epoch_237.pth"

default_cfgs = generate_default_cfgs(
    {
        "vmamba_tiny.mzeromiko_in1k": _cfg(_TINY_S1L8),
        "vmamba_small.mzeromiko_in1k": _cfg(_SMALL_S2L15),
        "vmamba_base.mzeromiko_in1k": _cfg(_BASE_S2L15),
        "vmamba_tiny_s1l8.mzeromiko_in1k": _cfg(_TINY_S1L8),
        "vmamba_tiny_s2l5.mzeromiko_in1k": _cfg("%23v2cls/vssm_tiny_0230_ckpt_epoch_262.pth"),
        "vmamba_small_s2l15.mzeromiko_in1k": _cfg(_SMALL_S2L15),
        "vmamba_small_s1l20.mzeromiko_in1k": _cfg("%23v2cls/vssm1_small_0229s_ckpt_epoch_240.pth"),
        "vmamba_base_s2l15.mzeromiko_in1k": _cfg(_BASE_S2L15),
        "vmamba_base_s1l20.mzeromiko_in1k": _cfg("%23v2cls/vssm1_base_0229s_ckpt_epoch_225.pth"),
        "vanilla_vmamba_tiny.mzeromiko_in1k": _cfg("%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth", "stem.proj"),
        "vanilla_vmamba_small.mzeromiko_in1k": _cfg("%23v0cls/vssmsmall_dp03_ckpt_epoch_238.pth", "stem.proj"),
        "vanilla_vmamba_base.mzeromiko_in1k": _cfg("%23v0cls/vssmbase_dp06_ckpt_epoch_241.pth", "stem.proj"),
    }
)

_BASE_DIMS = (128, 256, 512, 1024)


def _create_vmamba(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build(VMamba, variant, pretrained, default_indices=tuple(range(len(kwargs["depths"]))), **kwargs)


def _create_vanilla(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    first_version = {
        "state": 16,
        "expansion": 2.0,
        "conv_bias": True,
        "gated": True,
        "mlp_ratio": 0.0,
        "stem": partial(PatchStem, norm=StreamLayerNorm),
        "downsample": PatchMerging,
    }
    return _create_vmamba(variant, pretrained, **{**first_version, **kwargs})


@register_model
def vmamba_tiny_s1l8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VMamba-T: 30.2 M parameters, 82.6 % top-1 (published)."""
    return _create_vmamba("vmamba_tiny_s1l8", pretrained, **{"depths": (2, 2, 8, 2), **kwargs})


@register_model
def vmamba_tiny_s2l5(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VMamba-T, wider and shallower: 30.7 M parameters, 82.5 % top-1 (published)."""
    return _create_vmamba("vmamba_tiny_s2l5", pretrained, **{"depths": (2, 2, 5, 2), "expansion": 2.0, **kwargs})


@register_model
def vmamba_small_s2l15(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VMamba-S: 50.1 M parameters, 83.6 % top-1 (published)."""
    return _create_vmamba("vmamba_small_s2l15", pretrained, **{"depths": (2, 2, 15, 2), "expansion": 2.0, **kwargs})


@register_model
def vmamba_small_s1l20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VMamba-S, narrower and deeper: 49.0 M parameters, 83.3 % top-1 (published)."""
    return _create_vmamba("vmamba_small_s1l20", pretrained, **{"depths": (2, 2, 20, 2), **kwargs})


@register_model
def vmamba_base_s2l15(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VMamba-B: 88.6 M parameters, 83.9 % top-1 (published)."""
    size = {"dims": _BASE_DIMS, "depths": (2, 2, 15, 2), "expansion": 2.0}
    return _create_vmamba("vmamba_base_s2l15", pretrained, **{**size, **kwargs})


@register_model
def vmamba_base_s1l20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VMamba-B, narrower and deeper: 86.6 M parameters, 83.8 % top-1 (published)."""
    return _create_vmamba("vmamba_base_s1l20", pretrained, **{"dims": _BASE_DIMS, "depths": (2, 2, 20, 2), **kwargs})


@register_model
def vmamba_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The authors' headline VMamba-T: vmamba_tiny_s1l8."""
    return _create_vmamba("vmamba_tiny", pretrained, **{"depths": (2, 2, 8, 2), **kwargs})


@register_model
def vmamba_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The authors' headline VMamba-S: vmamba_small_s2l15."""
    return _create_vmamba("vmamba_small", pretrained, **{"depths": (2, 2, 15, 2), "expansion": 2.0, **kwargs})


@register_model
def vmamba_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The authors' headline VMamba-B: vmamba_base_s2l15."""
    size = {"dims": _BASE_DIMS, "depths": (2, 2, 15, 2), "expansion": 2.0}
    return _create_vmamba("vmamba_base", pretrained, **{**size, **kwargs})


@register_model
def vanilla_vmamba_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The first VMamba-T: 22.9 M parameters, 82.2 % top-1 (published)."""
    return _create_vanilla("vanilla_vmamba_tiny", pretrained, **{"depths": (2, 2, 9, 2), **kwargs})


@register_model
def vanilla_vmamba_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The first VMamba-S: 44.4 M parameters, 83.5 % top-1 (published)."""
    return _create_vanilla("vanilla_vmamba_small", pretrained, **{"depths": (2, 2, 27, 2), **kwargs})


@register_model
def vanilla_vmamba_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The first VMamba-B: 76.3 M parameters, 83.7 % top-1 (published)."""
    return _create_vanilla("vanilla_vmamba_base", pretrained, **{"dims": _BASE_DIMS, "depths": (2, 2, 27, 2), **kwargs})
