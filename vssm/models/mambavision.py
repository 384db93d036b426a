"""MambaVision: a hybrid Mamba-transformer vision backbone.

A pyramid of four stages: convolutions in the first two; in the last two, inside windows, blocks that scan and then as
many that attend. The scans run one way; a branch beside each, of a convolution alone, is put next to its output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import GELUTanh, register_notrace_module
from torch import Tensor, nn

from vssm.models._checkpoint import Renaming, under
from vssm.models._family import IMAGENET_21K, Family, Variant
from vssm.models._layouts import MAMBA_SCAN_ROWS
from vssm.models._pyramid import Pyramid, make_stages
from vssm.nn import (
    Attention,
    BatchNormStem,
    Block,
    ConvDownsample,
    ConvNormAct,
    LeanMlp,
    Linear,
    OrderTable,
    TwiceBiasedScan,
    initialise_linear_layers,
)
from vssm.scan import OrderFunction, raster
from vssm.values import widened


@register_notrace_module  # reads shapes
class MambaVisionMixer(nn.Module):
    """Two halves of the channels, each convolved with its neighbours in the sequence; one is scanned, one is not.

    The sequence is the map's rows one after another, and the convolution reads the positions before and after, whatever
    the order of the scan. Both halves, side by side, are projected back.

    Args:
        dim: channels of the map (batch, height, width, dim), both ways; even.
        scan_order: a function (height, width) -> ScanOrder; several directions are summed.

    >>> MambaVisionMixer(8)(torch.randn(2, 3, 5, 8)).shape
    torch.Size([2, 3, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        scan_order: OrderFunction = raster,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if dim % 2:
            raise ValueError(f"dims has {dim} channels where maps are scanned; expected an even number, for two halves")
        self.order_table = OrderTable(scan_order)
        self.in_proj = Linear(dim, dim, bias=False, **dd)
        self.conv_weight = nn.Parameter(torch.empty(2, dim // 2, 3, **dd))
        self.scan = TwiceBiasedScan(dim // 2, scan_order(2, 2).directions, state=8, rank=math.ceil(dim / 16), **dd)
        self.out_proj = Linear(dim, dim, bias=False, **dd)
        nn.init.uniform_(self.conv_weight, -(3**-0.5), 3**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        order = self.order_table(x.shape[1], x.shape[2], x.device)
        tokens, beside = F.silu(self.convolved(self.in_proj(x).flatten(1, 2))).chunk(2, dim=-1)
        scanned = self.scan(tokens, order, merge=True)
        return self.out_proj(torch.cat([scanned, beside], dim=-1)).view_as(x)

    def convolved(self, tokens: Tensor) -> Tensor:
        """Each channel of (batch, tokens, dim) with its three weights, zeros beyond the ends."""
        weight = self.conv_weight.flatten(0, 1)[:, None, None]
        # As a map of one row: torch's channels_last layout, so that nothing is copied.
        row = tokens[:, None].permute(0, 3, 1, 2)
        return F.conv2d(row, weight, padding=(0, 1), groups=len(weight)).permute(0, 2, 3, 1)[:, 0]


class ConvPair(nn.Sequential):
    """Two 3 x 3 convolutions with batch norm, GELU by tanh between: (batch, height, width, dim), both ways."""

    def __init__(self, dim: int, **dd: Any):
        conv = partial(ConvNormAct, dim, dim, kernel_size=3, bias=True, **dd)
        super().__init__(conv(act_layer=GELUTanh), conv(apply_act=False))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


_BLOCK = (
    ("conv1", "mixer.0.conv"),
    ("norm1", "mixer.0.bn"),
    ("conv2", "mixer.1.conv"),
    ("norm2", "mixer.1.bn"),
    ("norm1", "norm"),
    ("gamma_1", "layer_scale.gamma"),
    ("gamma_2", "layer_scale2.gamma"),
    *under("mixer", "mixer", MAMBA_SCAN_ROWS),
    (("mixer.conv1d_x.weight", "mixer.conv1d_z.weight"), "mixer.conv_weight", (0, (), 1)),
)


class MambaVision(Pyramid):
    """MambaVision.

    Args:
        dims, depths: channels and number of blocks of each stage.
        window_heads, windows: of the last stages: heads of the attention, and side of the windows, in positions. The
            stages before them are of convolutions. In a stage the first half of the blocks scans, rounded up.
        stem_width: channels within the stem.
        mlp_ratio: hidden channels of the MLPs per channel.
        layer_scale: multiply every branch inside windows by a learned number per channel, which starts at this value.
        scan_order: of a window, a function (height, width) -> ScanOrder; several directions are summed.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate, which
            drops windows one by one.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    Raises:
        ValueError: other numbers of heads than of windows, or more than stages.

    >>> model = MambaVision(dims=(8, 16), depths=(1, 2), window_heads=(2,), windows=(7,), stem_width=8, num_classes=10)
    >>> model(torch.randn(1, 3, 65, 40)).shape
    torch.Size([1, 10])
    """

    renaming = Renaming(
        rows=(
            ("patch_embed.conv_down.0", "stem.layers.0.conv"),
            ("patch_embed.conv_down.1", "stem.layers.0.bn"),
            ("patch_embed.conv_down.3", "stem.layers.1.conv"),
            ("patch_embed.conv_down.4", "stem.layers.1.bn"),
            # The official downsampling ends a stage; here: it begins the next one, so that a stage ends in its map.
            ("levels.{i}.downsample.reduction.0", "stages.{i+1}.downsample.conv"),
            ("levels.{i}.blocks.{j}", "stages.{i}.blocks.{j}"),
            *under("levels.{i}.blocks.{j}", "stages.{i}.blocks.{j}", _BLOCK),
            ("head", "head.fc"),
        )
    )
    first_conv = f"stem.{BatchNormStem.first_conv}"
    output_norm_eps = 1e-6
    weights_notice = (
        "NVIDIA's weights of MambaVision are licensed CC-BY-NC-SA-4.0: no commercial use; whoever passes them on, "
        "changed or not, names NVIDIA and keeps the licence (https://creativecommons.org/licenses/by-nc-sa/4.0/)"
    )

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: Sequence[int] = (80, 160, 320, 640),
        depths: Sequence[int] = (1, 3, 8, 4),
        window_heads: Sequence[int] = (8, 16),
        windows: Sequence[int] = (14, 7),
        stem_width: int = 32,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        scan_order: OrderFunction = raster,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        if not len(window_heads) == len(windows) <= len(dims):
            raise ValueError(
                f"there are {len(window_heads)} window_heads and {len(windows)} windows; expected one of each for "
                f"every stage that is not of convolutions, at most {len(dims)}"
            )
        conv_stages = len(dims) - len(windows)

        def block(stage: int, index: int, dim: int, drop_path: float) -> Block:
            if stage < conv_stages:
                return Block(dim, ConvPair(dim, **dd), drop_path=drop_path, norm=nn.Identity, **dd)
            if index < (depths[stage] + 1) // 2:
                mixer = MambaVisionMixer(dim, scan_order, **dd)
            else:
                mixer = Attention(dim, window_heads[stage - conv_stages], **dd)
            mlp = LeanMlp(dim, widened(dim, mlp_ratio, "mlp_ratio"), **dd)
            return Block(dim, mixer, mlp, drop_path, layer_scale=layer_scale, **dd)

        downsample = partial(ConvDownsample, bias=False, norm=nn.Identity)
        of_windows = (*[None] * conv_stages, *windows)
        super().__init__(
            BatchNormStem(in_chans, [(stem_width, 3, 2), (dims[0], 3, 2)], eps=1e-4, **dd),
            make_stages(block, dims, depths, downsample, drop_path_rate, windows=of_windows, **dd),
            nn.BatchNorm2d(dims[-1], **dd),
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            **dd,
        )
        initialise_linear_layers(self, scans=True)

    def normed(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def no_weight_decay(self) -> set[str]:
        # official: one-dimensional tensors, of which the step sizes' bias and D are two-dimensional here.
        return self.parameters_ending("dt_bias", "D")


_HUB = "https://huggingface.co/nvidia/MambaVision-"
_SMALL = {"dims": (96, 192, 384, 768), "depths": (3, 3, 7, 5), "stem_width": 64}
_BASE = {"dims": (128, 256, 512, 1024), "depths": (3, 3, 10, 5), "stem_width": 64, "layer_scale": 1e-5}
_LARGE = {**_BASE, "dims": (196, 392, 784, 1568), "window_heads": (16, 32)}
_LARGE2 = {**_LARGE, "depths": (3, 3, 12, 5)}
_LARGE3 = {**_LARGE, "dims": (256, 512, 1024, 2048), "depths": (3, 3, 20, 10)}
_256 = {"input_size": (3, 256, 256), "pool_size": (8, 8)}
_512 = {"input_size": (3, 512, 512), "pool_size": (16, 16), "crop_mode": "squash"}


def _variant(size: str, title: str, file: str, crop_pct: float = 1.0, cfg: Any = None, **arguments: Any) -> Variant:
    before = IMAGENET_21K if size.endswith("21k") else None
    cfg = {"crop_pct": crop_pct, **(cfg or {})}
    return Variant(f"mambavision_{size}", title, arguments, f"{_HUB}{file}.pth.tar", cfg=cfg, before=before)


FAMILY = Family(
    title="MambaVision",
    model=MambaVision,
    paper="2407.08083",
    repository="https://github.com/NVlabs/MambaVision",
    commit="7860a506b2eb844eaaae676f08461ce8c3c26f43",
    license="cc-by-nc-sa-4.0",
    code_license="Nvidia Source Code License-NC (non-commercial)",
    owner="nvlabs",
    strides=(4, 8, 16, 32),
    small={
        "mambavision_tiny": {
            "dims": (16, 24, 32, 40),
            "depths": (1, 1, 3, 2),
            "window_heads": (4, 2),
            "windows": (3, 2),
            "stem_width": 8,
            "layer_scale": 0.5,
        }
    },
    variants=(
        _variant("tiny", "MambaVision-T", "T-1K/resolve/main/mambavision_tiny_1k"),
        _variant("tiny2", "MambaVision-T2", "T2-1K/resolve/main/mambavision_tiny2_1k", 0.98, depths=(1, 3, 11, 4)),
        _variant("small", "MambaVision-S", "S-1K/resolve/main/mambavision_small_1k", 0.93, **_SMALL),
        _variant("base", "MambaVision-B", "B-1K/resolve/main/mambavision_base_1k", **_BASE),
        _variant("large", "MambaVision-L", "L-1K/resolve/main/mambavision_large_1k", **_LARGE),
        _variant("large2", "MambaVision-L2", "L2-1K/resolve/main/mambavision_large2_1k", **_LARGE2),
        _variant("base_21k", "MambaVision-B-21K", "B-21K/resolve/main/mambavision_base_21k", **_BASE),
        _variant("large_21k", "MambaVision-L-21K", "L-21K/resolve/main/mambavision_large_21k", **_LARGE),
        _variant(
            "large2_512_21k",
            "MambaVision-L2-512-21K",
            "L2-512-21K/resolve/main/mambavision_L2_21k_240m_512",
            0.93,
            _512,
            **_LARGE2,
            windows=(32, 16),
        ),
        _variant(
            "large3_256_21k",
            "MambaVision-L3-256-21K",
            "L3-256-21K/resolve/main/mambavision_L3_21k_740m_256",
            1.0,
            _256,
            **_LARGE3,
            windows=(16, 8),
        ),
        _variant(
            "large3_512_21k",
            "MambaVision-L3-512-21K",
            "L3-512-21K/resolve/main/mambavision_L3_21k_740m_512",
            0.93,
            _512,
            **_LARGE3,
            windows=(32, 16),
        ),
    ),
    parts=(
        ("MambaVision mixer", "MambaVisionMixer", MambaVisionMixer),
        ("its SSM", "selective_scan_fn", TwiceBiasedScan),
        ("multi-head self-attention in windows", "Attention", Attention),
        ("residual convolutional block", "ConvBlock", ConvPair),
        ("block", "Block", Block),
        ("stem", "PatchEmbed", BatchNormStem),
        ("downsampler", "Downsample", ConvDownsample),
        ("MambaVision", "MambaVision", MambaVision),
    ),
)
