"""MSVMamba: multi-scale VMamba.

Paper: arXiv 2405.14174 (NeurIPS 2024). Official code and weights: https://github.com/YuHengsss/MSVMamba, the paper's
models (nano, micro, tiny) at c39401918e94f11eb29e4932b901b3fd139f1377 and the later "v3" ones at
fca4a391bff29d0e25fe8e6e54496389bb575935; no licence is published.

A pyramid of four stages; every block scans its map once along the rows at full resolution, and at half resolution
along rows backwards, columns, and columns backwards, as one sequence.
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

from vssm.models import vmamba
from vssm.models._base import Pyramid, build, make_stages
from vssm.models._cfg import imagenet_cfg
from vssm.nn import (
    BranchLayerNorm,
    ChannelsLastConv2d,
    ConvDownsample,
    ConvStem,
    OrderTable,
    PatchMerging,
    PatchStem,
    SelectiveScan,
    StreamLayerNorm,
    concrete,
    recomputed,
)
from vssm.ops import ScanTable
from vssm.scan import OrderFunction, ScanOrder, chain, columns, flipped, raster


def half_order(height: int, width: int) -> ScanOrder:
    """The walk over the half-resolution map: rows backwards, columns, columns backwards, without a stop."""
    by_columns = columns(height, width)
    return chain(flipped(raster(height, width)), by_columns, flipped(by_columns))


class ChannelGate(nn.Module):
    """Squeeze and excitation (arXiv 1709.01507): every channel times a number in 0 to 1 made of all channels' means."""

    def __init__(self, channels: int, reduction: int = 8, **dd: Any):
        super().__init__()
        self.reduce = nn.Linear(channels, channels // reduction, bias=False, **dd)
        self.expand = nn.Linear(channels // reduction, channels, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels), both ways."""
        mean = x.mean((1, 2), keepdim=True)
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(mean))))


@register_notrace_module
class MultiScaleSS2D(nn.Module):
    """Projection, a scan of the map and one of its half-resolution version, sum, norm, channel gate, projection back.

    This is the mixer of the v3 models.

    Args:
        dim: channels of the map; `expansion` times as many inside.
        expansion: inner channels per outer channel.
        gated: multiply the result by silu of a second projection.
        scan_order: of the full-resolution map, a function (height, width) -> ScanOrder.
    """

    def __init__(
        self,
        dim: int,
        expansion: float = 1.0,
        gated: bool = False,
        scan_order: OrderFunction = raster,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        inner = int(expansion * dim)
        rank = math.ceil(dim / 16)
        depthwise = partial(ChannelsLastConv2d, inner, inner, groups=inner, **dd)
        self.gated = gated
        self.order_table, self.half_order_table = OrderTable(scan_order), OrderTable(half_order)
        self.in_proj = nn.Linear(dim, 2 * inner if gated else inner, bias=False, **dd)
        self.conv = depthwise(kernel_size=3, padding=1)
        self.half_conv = depthwise(kernel_size=7, padding=3, stride=2)
        self.scan = SelectiveScan(inner, scan_order(2, 2).directions, state=1, rank=rank, **dd)
        self.half_scan = SelectiveScan(inner, directions=1, state=1, rank=rank, **dd)
        self.norm = BranchLayerNorm(inner, **dd)
        self.channel_gate = ChannelGate(inner, **dd)
        self.out_proj = nn.Linear(inner, dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim), both ways."""
        x = self.in_proj(x)
        if self.gated:
            x, z = x.chunk(2, dim=-1)
        y = self.channel_gate(self.mix(F.silu(self.conv(x)), F.silu(self.half_conv(x))))
        return self.out_proj(y * F.silu(z) if self.gated else y)

    def mix(self, full: Tensor, half: Tensor) -> Tensor:
        """Scan both maps, (batch, height, width, channels) and half of the size; their normed sum at full size."""
        scanned = self.scan(full.flatten(1, 2), _table(self.order_table, full), merge=True).view_as(full)
        # Each token is visited three times and receives the sum of the three outputs.
        half_scanned = self.half_scan(half.flatten(1, 2), _table(self.half_order_table, half), merge=True).view_as(half)
        return self.norm(scanned + _resized(half_scanned, full, mode="nearest"))


class FirstMultiScaleSS2D(MultiScaleSS2D):
    """The mixer of the paper's models: every step's output is normed before the three visits of a token are summed."""

    def mix(self, full: Tensor, half: Tensor) -> Tensor:
        directions = self.scan(full.flatten(1, 2), _table(self.order_table, full))
        visited = _table(self.half_order_table, half).table[0]
        tokens = half.flatten(1, 2)
        met = tokens.index_select(1, visited)  # each token three times, in the order of the walk
        visits = self.norm(self.half_scan(met, None), merge=True)
        half_scanned = torch.zeros_like(tokens, dtype=visits.dtype).index_add(1, visited, visits).view_as(half)
        scanned = self.norm(directions, merge=True).view_as(full)
        return scanned + _resized(half_scanned, full, mode="bilinear", align_corners=False)


def _table(order_table: OrderTable, x: Tensor) -> ScanTable:
    return order_table(x.shape[1], x.shape[2], x.device)


def _resized(x: Tensor, like: Tensor, **how: Any) -> Tensor:
    """(batch, height, width, channels) at the height and width of another map."""
    size = concrete(like.shape[1]), concrete(like.shape[2])
    return F.interpolate(x.permute(0, 3, 1, 2), size=size, **how).permute(0, 2, 3, 1)


class ConvMlp(nn.Module):
    """MLP with a 3 x 3 depthwise convolution between its layers; (batch, height, width, dim), both ways."""

    def __init__(self, dim: int, hidden: int, **dd: Any):
        super().__init__()
        self.fc1 = ChannelsLastConv2d(dim, hidden, kernel_size=1, **dd)
        self.conv = ChannelsLastConv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden, **dd)
        self.fc2 = ChannelsLastConv2d(hidden, dim, kernel_size=1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return recomputed(lambda hidden: self.fc2(F.gelu(hidden)), x + self.conv(x))


class MSBlock(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm2(x)), or x + norm2(mlp(x)) with `post_norm`."""

    def __init__(self, mixer: nn.Module, dim: int, mlp_ratio: float, post_norm: bool, drop_path: float, **dd: Any):
        super().__init__()
        self.norm = BranchLayerNorm(dim, **dd)
        self.mixer = mixer
        self.norm2 = BranchLayerNorm(dim, **dd)
        self.mlp = ConvMlp(dim, int(mlp_ratio * dim), **dd)
        self.post_norm = post_norm
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim), both ways."""
        x = x + self.drop_path(self.mixer(self.norm(x)))
        return x + self.drop_path(self.norm2(self.mlp(x)) if self.post_norm else self.mlp(self.norm2(x)))


class MSVMamba(Pyramid):
    """MSVMamba.

    Args:
        dims, depths: channels and number of blocks of each stage.
        mixer: MultiScaleSS2D, or FirstMultiScaleSS2D for the paper's models.
        expansion, gated, scan_order: of the mixers, see MultiScaleSS2D.
        mlp_ratio, post_norm: of the blocks, see MSBlock.
        stem, downsample: what makes them from numbers of channels: ConvStem and ConvDownsample, or PatchStem and
            PatchMerging.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> model = MSVMamba(dims=(16, 32), depths=(1, 1), num_classes=10)
    >>> model(torch.randn(1, 3, 65, 40)).shape
    torch.Size([1, 10])
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 9, 2),
        mixer: Callable[..., MultiScaleSS2D] = MultiScaleSS2D,
        expansion: float = 1.0,
        gated: bool = False,
        mlp_ratio: float = 4.0,
        post_norm: bool = True,
        stem: Callable[..., ConvStem | PatchStem] = ConvStem,
        downsample: Callable[..., nn.Module] = ConvDownsample,
        scan_order: OrderFunction = raster,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}

        def block(stage: int, dim: int, drop_path: float) -> MSBlock:
            mixed = mixer(dim, expansion, gated, scan_order, **dd)
            return MSBlock(mixed, dim, mlp_ratio, post_norm, drop_path, **dd)

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
        if not self.of_the_paper():  # official: version 3 is evaluated with its averaged weights
            self.weights_under = ("model_ema", "model", "state_dict")
        vmamba.initialise_linear_layers(self)

    def of_the_paper(self) -> bool:
        """Whether this is one of the paper's models, not of version 3."""
        return isinstance(self.stages[0].blocks[0].mixer, FirstMultiScaleSS2D)

    def no_weight_decay(self) -> set[str]:
        # official: one-dimensional tensors and biases, of which D is one there and two-dimensional here; as VMamba.
        return self.parameters_ending("D")

    def convert_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return checkpoint_filter_fn(state, self)


# Official names that VMamba does not have -> ours.
_RENAMED = [
    (r"\.op\.conv2d_b1\.", ".mixer.half_conv."),
    (r"\.op\.se\.fc\.0\.", ".mixer.channel_gate.reduce."),
    (r"\.op\.se\.fc\.2\.", ".mixer.channel_gate.expand."),
    (r"\.convFFN\.linear1\.", ".mlp.fc1."),
    (r"\.convFFN\.dwc\.", ".mlp.conv."),
    (r"\.convFFN\.linear2\.", ".mlp.fc2."),
]
_STACKED = {
    "x_proj_weight": "x_proj",
    "dt_projs_weight": "dt_proj",
    "dt_projs_bias": "dt_bias",
    "A_logs": "A_log",
    "Ds": "D",
}


def checkpoint_filter_fn(state: dict[str, Tensor], model: MSVMamba) -> dict[str, Tensor]:
    """Official MSVMamba weights (of both versions), or ours, as a state dict of `model`."""
    # official: both scans' parameters stacked, the half-resolution ones first in the paper's models, last in v3.
    scans = ("half_scan", "scan") if model.of_the_paper() else ("scan", "half_scan")
    converted = {}
    for name, value in state.items():
        block, _, parameter = name.rpartition(".op.")
        if parameter in _STACKED and value.dim() > 0 and len(value) % 2 == 0:
            for scan, part in zip(scans, value.chunk(2), strict=True):
                directions_apart = part[None] if parameter in ("A_logs", "Ds") else part
                converted[f"{block}.mixer.{scan}.{_STACKED[parameter]}"] = directions_apart
            continue
        for pattern, ours in _RENAMED:
            name = re.sub(pattern, ours, name)
        converted[name] = value
    return vmamba.checkpoint_filter_fn(converted, model)


def _cfg(first_conv: str = "stem.conv1", **kwargs: Any) -> dict[str, Any]:
    return imagenet_cfg(
        first_conv,
        MSVMamba.classifier,
        license="unknown",  # the authors publish none
        origin_url="https://github.com/YuHengsss/MSVMamba",
        paper_ids="arXiv:2405.14174",
        **kwargs,
    )


def _in_folder(folder: str) -> dict[str, Any]:
    """Weights that lie where only a browser can fetch them."""
    return _cfg("stem.proj", notes=(f"https://drive.google.com/drive/folders/{folder}",))


def _on_hub(file: str) -> dict[str, Any]:
    return _cfg(url=f"https://huggingface.co/YuhengSSS/MSVMamba/resolve/main/{file}")


default_cfgs = generate_default_cfgs(
    {
        "msvmamba_nano.yuhengsss_in1k": _in_folder("1J41w3ApitQhp2O3wHmJoOs4U032uqebK"),
        "msvmamba_micro.yuhengsss_in1k": _in_folder("1jfl2GmuKcUB8sPwRlyHK_wT0MjqgljYk"),
        "msvmamba_tiny.yuhengsss_in1k": _in_folder("1ddNWk89ohcxxMuVEaJ2Y5A6xeBKgA7lU"),
        "msvmamba_v3_tiny.yuhengsss_in1k": _on_hub("msvmambav3_tiny_224.pth"),
        "msvmamba_v3_small.yuhengsss_in1k": _on_hub("msvmambav3_small_224.pth"),
        "msvmamba_v3_base.yuhengsss_in1k": _on_hub("msvmambav3_base_224.pth"),
    }
)


def _create_msvmamba(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build(MSVMamba, variant, pretrained, default_indices=tuple(range(len(kwargs["depths"]))), **kwargs)


def _create_paper(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    first_version = {
        "mixer": FirstMultiScaleSS2D,
        "expansion": 2.0,
        "gated": True,
        "mlp_ratio": 2.0,
        "post_norm": False,
        "stem": partial(PatchStem, norm=StreamLayerNorm),
        "downsample": PatchMerging,
    }
    return _create_msvmamba(variant, pretrained, **{**first_version, **kwargs})


@register_model
def msvmamba_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MSVMamba-N: 6.9 M parameters, 77.3 % top-1 (published)."""
    size = {"dims": (48, 96, 192, 384), "depths": (1, 2, 5, 2)}
    return _create_paper("msvmamba_nano", pretrained, **{**size, **kwargs})


@register_model
def msvmamba_micro(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MSVMamba-M: 11.9 M parameters, 79.8 % top-1 (published)."""
    size = {"dims": (64, 128, 256, 512), "depths": (1, 2, 5, 2)}
    return _create_paper("msvmamba_micro", pretrained, **{**size, **kwargs})


@register_model
def msvmamba_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MSVMamba-T: 33.0 M parameters, 82.8 % top-1 (published)."""
    return _create_paper("msvmamba_tiny", pretrained, **{"depths": (1, 2, 9, 2), **kwargs})


@register_model
def msvmamba_v3_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MSVMamba-T, version 3: 32.3 M parameters, 83.0 % top-1 (published)."""
    return _create_msvmamba("msvmamba_v3_tiny", pretrained, **{"depths": (2, 2, 9, 2), **kwargs})


@register_model
def msvmamba_v3_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MSVMamba-S, version 3: 50.2 M parameters, 84.1 % top-1 (published)."""
    return _create_msvmamba("msvmamba_v3_small", pretrained, **{"depths": (2, 3, 20, 2), **kwargs})


@register_model
def msvmamba_v3_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MSVMamba-B, version 3: 90.6 M parameters, 84.4 % top-1 (published)."""
    size = {"dims": (128, 256, 512, 1024), "depths": (2, 4, 18, 2), "gated": True}
    return _create_msvmamba("msvmamba_v3_base", pretrained, **{**size, **kwargs})
