"""MSVMamba: multi-scale VMamba.

A pyramid of four stages; every block scans its map once along the rows at full resolution, and at half resolution
along rows backwards, columns, and columns backwards, as one sequence. The paper's models are FirstMSVMamba; version 3
is in branch v2 of the official repository, at fca4a391bff29d0e25fe8e6e54496389bb575935.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn
from torch.nn import functional as F

from vssm.models._checkpoint import Renaming, under
from vssm.models._family import Family, Variant
from vssm.models._layouts import BLOCK, CONV_PYRAMID, PATCH_PYRAMID, S6_ROWS
from vssm.models._mixers import MixerMaker, make_mixer
from vssm.models._pyramid import Pyramid, make_stages
from vssm.nn import (
    Block,
    BranchLayerNorm,
    ChannelGate,
    ChannelsLastConv2d,
    ConvDownsample,
    ConvMlp,
    ConvStem,
    GatedMixer,
    Linear,
    OrderTable,
    PatchMerging,
    PatchStem,
    SelectiveScan,
    StreamLayerNorm,
    concrete,
    convolved_silu,
    initialise_linear_layers,
)
from vssm.ops import ScanTable
from vssm.scan import OrderFunction, ScanOrder, chain, columns, flipped, raster
from vssm.values import widened


def half_order(height: int, width: int) -> ScanOrder:
    """The walk over the half-resolution map: rows backwards, columns, columns backwards, without a stop."""
    by_columns = columns(height, width)
    return chain(flipped(raster(height, width)), by_columns, flipped(by_columns))


@register_notrace_module
class MultiScaleSS2D(GatedMixer):
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
        inner = widened(dim, expansion, "expansion")
        rank = math.ceil(dim / 16)
        depthwise = partial(ChannelsLastConv2d, inner, inner, groups=inner, **dd)
        self.gated = gated
        self.order_table, self.half_order_table = OrderTable(scan_order), OrderTable(half_order)
        self.in_proj = Linear(dim, 2 * inner if gated else inner, bias=False, **dd)
        self.conv = depthwise(kernel_size=3, padding=1)
        self.half_conv = depthwise(kernel_size=7, padding=3, stride=2)
        self.scan = SelectiveScan(inner, scan_order(2, 2).directions, state=1, rank=rank, **dd)
        self.half_scan = SelectiveScan(inner, directions=1, state=1, rank=rank, **dd)
        self.norm = BranchLayerNorm(inner, **dd)
        self.channel_gate = ChannelGate(inner, **dd)
        self.out_proj = Linear(inner, dim, bias=False, **dd)

    def mix(self, x: Tensor) -> Tensor:
        return self.channel_gate(self.merge(convolved_silu(self.conv, x), convolved_silu(self.half_conv, x)))

    def merge(self, full: Tensor, half: Tensor) -> Tensor:
        """Scan both maps, (batch, height, width, channels) and half of the size; their normed sum at full size."""
        scanned = self.scan(full.flatten(1, 2), _table(self.order_table, full), merge=True).view_as(full)
        # Each token is visited three times and receives the sum of the three outputs.
        half_scanned = self.half_scan(half.flatten(1, 2), _table(self.half_order_table, half), merge=True).view_as(half)
        return self.norm(scanned + _resized(half_scanned, full, mode="nearest"))


class FirstMultiScaleSS2D(MultiScaleSS2D):
    """The mixer of the paper's models: every step's output is normed before the three visits of a token are summed."""

    def merge(self, full: Tensor, half: Tensor) -> Tensor:
        directions = self.scan(full.flatten(1, 2), _table(self.order_table, full))
        visited = _table(self.half_order_table, half).table[0].long()  # ONNX adds at 64-bit indices alone
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


def _blocks(*scans: str) -> Renaming:
    """The official blocks, with the parameters of both scans in one tensor each, in the order of `scans`."""
    mixer = (
        ("conv2d", "conv"),
        ("conv2d_b1", "half_conv"),
        ("out_norm", "norm"),
        ("se.fc.0", "channel_gate.reduce"),
        ("se.fc.2", "channel_gate.expand"),
        *((theirs, tuple(f"{scan}.{ours}" for scan in scans), *dims) for theirs, ours, *dims in S6_ROWS),
    )
    mlp = (("linear1", "fc1"), ("dwc", "conv"), ("linear2", "fc2"))
    block = (("op", "mixer"), ("convFFN", "mlp"), *under("op", "mixer", mixer), *under("convFFN", "mlp", mlp))
    return Renaming(under(*BLOCK, block))


class MSVMamba(Pyramid):
    """MSVMamba.

    Args:
        dims, depths: channels and number of blocks of each stage.
        expansion, gated, scan_order: of the mixers, see MultiScaleSS2D.
        mixer: another one than MultiScaleSS2D, as in VMamba.
        mlp_ratio, post_norm: of the blocks, see vssm.nn.Block.
        stem, downsample: what makes them from numbers of channels: ConvStem and ConvDownsample, or PatchStem and
            PatchMerging.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> model = MSVMamba(dims=(16, 32), depths=(1, 1), num_classes=10)
    >>> model(torch.randn(1, 3, 65, 40)).shape
    torch.Size([1, 10])
    """

    renaming = CONV_PYRAMID + _blocks("scan", "half_scan")
    weights_under = ("model_ema", "model", "state_dict")  # official: version 3 is evaluated with its averaged weights
    first_conv = "stem.conv1"
    own_mixer: type[MultiScaleSS2D] = MultiScaleSS2D

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 9, 2),
        expansion: float = 1.0,
        gated: bool = False,
        mixer: MixerMaker | None = None,
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

        def block(stage: int, index: int, dim: int, drop_path: float) -> Block:
            mlp = ConvMlp(dim, widened(dim, mlp_ratio, "mlp_ratio"), **dd)
            made = make_mixer(mixer or own, dim, **dd, expansion=expansion, scan_order=scan_order)
            return Block(dim, made, mlp, drop_path, post_norm=post_norm, **dd)

        own = partial(self.own_mixer, gated=gated)
        stages = make_stages(block, dims, depths, downsample, drop_path_rate, **dd)
        super().__init__(
            stem(in_chans, dims[0], **dd),
            stages,
            nn.LayerNorm(dims[-1], **dd),
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            **dd,
        )
        initialise_linear_layers(self)


class FirstMSVMamba(MSVMamba):
    """The paper's MSVMamba, whose official weights are laid out in another way; arguments are those of MSVMamba."""

    renaming = PATCH_PYRAMID + _blocks("half_scan", "scan")
    weights_under = Pyramid.weights_under
    first_conv = "stem.proj"
    own_mixer = FirstMultiScaleSS2D


_FIRST_VERSION = {
    "expansion": 2.0,
    "gated": True,
    "mlp_ratio": 2.0,
    "post_norm": False,
    "stem": partial(PatchStem, norm=StreamLayerNorm),
    "downsample": PatchMerging,
}
_HUB = "https://huggingface.co/YuhengSSS/MSVMamba/resolve/main/"
_DRIVE = "https://drive.google.com/drive/folders/"
_SMALL = {"dims": (16, 24, 32, 40), "depths": (1, 1, 2, 1)}


def _first_version(name: str, title: str, folder: str, **arguments: Any) -> Variant:
    return Variant(name, title, _FIRST_VERSION | arguments, _DRIVE + folder, model=FirstMSVMamba)


FAMILY = Family(
    title="MSVMamba",
    model=MSVMamba,
    paper="2405.14174",
    repository="https://github.com/YuHengsss/MSVMamba",
    commit="c39401918e94f11eb29e4932b901b3fd139f1377",
    license="unknown",
    owner="yuhengsss",
    strides=(4, 8, 16, 32),
    small={"msvmamba_nano": _SMALL, "msvmamba_v3_tiny": {**_SMALL, "gated": True}},
    variants=(
        _first_version(
            "msvmamba_nano",
            "MSVMamba-N",
            "1J41w3ApitQhp2O3wHmJoOs4U032uqebK",
            dims=(48, 96, 192, 384),
            depths=(1, 2, 5, 2),
        ),
        _first_version(
            "msvmamba_micro",
            "MSVMamba-M",
            "1jfl2GmuKcUB8sPwRlyHK_wT0MjqgljYk",
            dims=(64, 128, 256, 512),
            depths=(1, 2, 5, 2),
        ),
        _first_version("msvmamba_tiny", "MSVMamba-T", "1ddNWk89ohcxxMuVEaJ2Y5A6xeBKgA7lU", depths=(1, 2, 9, 2)),
        Variant(
            "msvmamba_v3_tiny",
            "MSVMamba-T, version 3",
            {"depths": (2, 2, 9, 2)},
            _HUB + "msvmambav3_tiny_224.pth",
        ),
        Variant(
            "msvmamba_v3_small",
            "MSVMamba-S, version 3",
            {"depths": (2, 3, 20, 2)},
            _HUB + "msvmambav3_small_224.pth",
        ),
        Variant(
            "msvmamba_v3_base",
            "MSVMamba-B, version 3",
            {"dims": (128, 256, 512, 1024), "depths": (2, 4, 18, 2), "gated": True},
            _HUB + "msvmambav3_base_224.pth",
        ),
    ),
    parts=(
        ("multi-scale 2D scan (MS2D)", "SS2D", FirstMultiScaleSS2D),
        ("MS2D of version 3", "SS2D of the branch v2", MultiScaleSS2D),
        ("the scans at half resolution", "get_splited_xs", half_order),
        ("squeeze and excitation", "SE", ChannelGate),
        ("convolutional feed-forward network (ConvFFN)", "ConvFFN", ConvMlp),
        ("multi-scale state space (MS3) block", "VSSBlock", Block),
        ("MSVMamba", "VSSM", MSVMamba),
    ),
    timed=("msvmamba_tiny",),
)
