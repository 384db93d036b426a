"""Mamba2D: a state-space model that is two-dimensional itself, instead of a scan of a map along lines.

A pyramid of four stages. In the first two, states come from above and from the left and are halved where they meet, so
that a position reads all that is above and on the left of it; every second block works from the other corner. A path of
convolutions stands beside the scan. The last two stages attend. The first version of the paper has a model of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead
from timm.models.metaformer import StarReLU
from torch import Tensor, nn

from vssm.models._checkpoint import Renaming, under
from vssm.models._family import Family, Variant
from vssm.models._pyramid import Pyramid, make_stages
from vssm.nn import (
    Attention,
    Block,
    BranchLayerNorm,
    ChannelsLastConv2d,
    ConvDownsample,
    LeanMlp,
    Linear,
    PatchStem,
    RotaryPosition,
    StreamLayerNorm,
    WavefrontMixer,
)
from vssm.ops import wavefront_scan
from vssm.values import widened

HEAD_CHANNELS = 32  # of the attention


class LocalPath(nn.Sequential):
    """Norm, twice the channels, StarReLU, a depthwise 3 x 3 convolution, StarReLU, the channels: a map, both ways.

    >>> LocalPath(8)(torch.randn(2, 3, 5, 8)).shape
    torch.Size([2, 3, 5, 8])
    """

    def __init__(self, dim: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        dd = {"device": device, "dtype": dtype}
        inner = 2 * dim
        super().__init__(
            OrderedDict(
                norm=BranchLayerNorm(dim, **dd),
                fc1=Linear(dim, inner, bias=False, **dd),
                act1=StarReLU(**dd),
                conv=ChannelsLastConv2d(inner, inner, kernel_size=3, padding=1, groups=inner, bias=False, **dd),
                act2=StarReLU(**dd),
                fc2=Linear(inner, dim, bias=False, **dd),
            )
        )


class NormedDownsample(ConvDownsample):
    """A norm, then a 3 x 3 convolution of stride 2.

    >>> NormedDownsample(4, 8)(torch.randn(1, 7, 6, 4)).shape
    torch.Size([1, 4, 3, 8])
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(in_channels, channels, norm=nn.Identity, **dd)
        self.pre_norm = BranchLayerNorm(in_channels, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.pre_norm(x))


class MlpHead(ClassifierHead):
    """Pooling, norm, four times the channels, GELU, norm, dropout, classifier; without pooling, at every position.

    Args:
        in_features: channels of the map.
        num_classes, pool_type, drop_rate: as in timm's ClassifierHead.

    >>> MlpHead(8, 10, pool_type="avg", drop_rate=0.0, input_fmt="NHWC")(torch.randn(2, 3, 5, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **how: Any,
    ):
        dd = {"device": device, "dtype": dtype}
        hidden = 4 * in_features
        super().__init__(hidden, num_classes, **how, **dd)
        self._check_pool()
        self.mlp = nn.Sequential(
            OrderedDict(
                norm=BranchLayerNorm(in_features, **dd),
                fc=nn.Linear(in_features, hidden, **dd),
                act=nn.GELU(),
                norm2=BranchLayerNorm(hidden, **dd),
            )
        )

    def _check_pool(self) -> None:
        if self.global_pool.feat_mult() != 1:
            raise ValueError(
                f"global_pool is {self.global_pool.pool_type!r}, which gives more channels than it is given; expected "
                f'"avg", "max", "avgmax", or "" for none: the MLP needs as many'
            )

    def remove_mlp(self, channels: int) -> None:
        """Pooling alone, of a map with these channels."""
        self.mlp = nn.Identity()
        super().reset(0, "", in_features=channels)

    def reset(self, num_classes: int, pool_type: str | None = None, **more: Any) -> None:
        """A new classifier; the MLP stays as it is, and with it the number of channels that are classified."""
        super().reset(num_classes, pool_type, **{**more, "in_features": self.in_features})
        self._check_pool()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(self.mlp(self.global_pool(x)))
        return x if pre_logits else self.fc(x)


_MIXER = (
    ("local_norm", "local.norm"),
    ("local_path.pwconv1", "local.fc1"),
    ("local_path.act1", "local.act1"),
    ("local_path.dwconv", "local.conv"),
    ("local_path.act2", "local.act2"),
    ("local_path.pwconv2", "local.fc2"),
    ("x_proj", "scan.x_proj"),
    (("dt_projT.weight", "dt_projL.weight"), "scan.dt_proj"),
    (("dt_projT.bias", "dt_projL.bias"), "scan.dt_bias"),
    (("AT_log", "AL_log"), "scan.A_log"),
    ("D", "scan.D"),
)
_BLOCK = (
    ("norm1", "norm"),
    ("token_mixer", "mixer"),
    *under("token_mixer", "mixer", _MIXER),
    ("res_scale1.scale", "residual_scale.gamma"),
    ("MLP", "mlp"),
    ("res_scale2.scale", "residual_scale2.gamma"),
)


class Mamba2D(Pyramid):
    """Mamba2D.

    Args:
        dims, depths: channels and number of blocks of each stage.
        scanned_stages: how many stages scan; those after them attend, with a head for every 32 channels.
        state, expansion: of the scans, see WavefrontMixer.
        mlp_ratio: hidden channels of the MLPs per channel.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> model = Mamba2D(dims=(16, 32), depths=(2, 1), scanned_stages=1, num_classes=10)
    >>> model(torch.randn(1, 3, 65, 40)).shape
    torch.Size([1, 10])
    """

    renaming = Renaming(
        rows=(
            ("backbone.ds.stem.conv", "stem.proj"),
            ("backbone.ds.stem.post_norm.norm", "stem.norm"),
            ("backbone.ds.ds{i}", "stages.{i}.downsample"),
            ("backbone.ds.ds{i}.pre_norm.norm", "stages.{i}.downsample.pre_norm"),
            ("backbone.stages.{i}.{j}", "stages.{i}.blocks.{j}"),
            *under("backbone.stages.{i}.{j}", "stages.{i}.blocks.{j}", _BLOCK),
            ("norm", "head.mlp.norm"),
            ("head.fc1", "head.mlp.fc"),
            ("head.norm", "head.mlp.norm2"),
            ("head.fc2", "head.fc"),
        ),
        older=(("ds", "backbone.ds"), ("stages", "backbone.stages")),  # backbones by themselves
    )
    first_conv = f"stem.{PatchStem.first_conv}"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 3, 9, 3),
        scanned_stages: int = 2,
        state: int = 16,
        expansion: float = 1.0,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}

        def block(stage: int, index: int, dim: int, drop_path: float) -> Block:
            scans = stage < scanned_stages
            mixer = self.scan(dim, index, state, expansion, **dd) if scans else self.attention(dim, **dd)
            mlp = LeanMlp(dim, widened(dim, mlp_ratio, "mlp_ratio"), **dd)
            return Block(dim, mixer, mlp, drop_path, residual_scale=self.scales_residual(scans), **dd)

        super().__init__(
            PatchStem(in_chans, dims[0], patch_size=7, stride=4, padding=2, norm=StreamLayerNorm, **dd),
            make_stages(block, dims, depths, self.downsample, drop_path_rate, self.stage_norm, **dd),
            nn.Identity(),  # a stage ends in its norm, and another one comes after pooling
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            MlpHead,
            **dd,
        )
        self.stages[-1].norm = self.stage_norm(dims[-1], **dd)
        # Officially the norm is the last entry of a stage.
        norms = tuple((f"backbone.stages.{i}.{depth}", f"stages.{i}.norm") for i, depth in enumerate(depths))
        self.renaming = type(self).renaming + Renaming(norms)

    stage_norm = StreamLayerNorm

    @staticmethod
    def downsample(in_channels: int, channels: int, **dd: Any) -> nn.Module:
        return ConvDownsample(in_channels, channels, norm=nn.Identity, **dd)

    @staticmethod
    def scan(dim: int, index: int, state: int, expansion: float, **dd: Any) -> nn.Module:
        return WavefrontMixer(dim, state, expansion, reverse=index % 2 == 1, local=LocalPath(dim, **dd), **dd)

    @staticmethod
    def attention(dim: int, **dd: Any) -> nn.Module:
        rotary = RotaryPosition(HEAD_CHANNELS)
        return Attention(
            dim, _heads(dim), qkv_bias=False, proj_bias=False, rotary=rotary, qk_norm=BranchLayerNorm, **dd
        )

    @staticmethod
    def scales_residual(scans: bool) -> bool:
        return True

    def no_weight_decay(self) -> set[str]:
        # official: one-dimensional tensors, of which the step sizes' biases are two-dimensional here, and the rates.
        return self.parameters_ending("A_log", "dt_bias")

    def remove_head(self) -> None:
        super().remove_head()
        self.head.remove_mlp(self.num_features)
        self.head_hidden_size = self.num_features


class Mamba2DV1(Mamba2D):
    """Mamba2D as of the first version of its paper.

    All scans begin in the same corner, with one B for both ways; attention has no positions and no norms; residuals are
    scaled where it attends alone; norms come before the downsampling instead of at the end of stages. Arguments are
    those of Mamba2D; the published model has an expansion of 2.

    >>> model = Mamba2DV1(dims=(16, 32), depths=(2, 1), scanned_stages=1, expansion=2.0, num_classes=10)
    >>> model(torch.randn(1, 3, 65, 40)).shape
    torch.Size([1, 10])
    """

    downsample = NormedDownsample
    stage_norm = nn.Identity

    @staticmethod
    def scan(dim: int, index: int, state: int, expansion: float, **dd: Any) -> nn.Module:
        return WavefrontMixer(dim, state, expansion, shared_input=True, local=LocalPath(dim, **dd), **dd)

    @staticmethod
    def attention(dim: int, **dd: Any) -> nn.Module:
        return Attention(dim, _heads(dim), qkv_bias=False, proj_bias=False, **dd)

    @staticmethod
    def scales_residual(scans: bool) -> bool:
        return not scans


def _heads(dim: int) -> int:
    if dim % HEAD_CHANNELS:
        raise ValueError(f"dims has {dim} channels where maps are attended to; expected a multiple of {HEAD_CHANNELS}")
    return dim // HEAD_CHANNELS


_RELEASE = "https://github.com/cocoalex00/Mamba2D/releases/download/v2.0.0/M2D-"
_CFG = {"crop_pct": 1.0}
_SMALL = {"dims": (16, 24, 32, 64), "depths": (1, 2, 1, 1), "state": 4}

FAMILY = Family(
    title="Mamba2D",
    model=Mamba2D,
    paper="2412.16146",
    repository="https://github.com/cocoalex00/Mamba2D",
    commit="9acb361c74dd3f95f984989a836681ffe94a3c27",
    license="unknown",
    owner="cocoalex00",
    strides=(4, 8, 16, 32),
    cfg=_CFG,
    small={"mamba2d_tiny": _SMALL, "mamba2d_v1_tiny": _SMALL},
    variants=(
        Variant("mamba2d_nano", "M2D-N", {"dims": (32, 64, 160, 256)}, f"{_RELEASE}N-backbone.ckpt"),
        Variant("mamba2d_tiny", "M2D-T", {}, f"{_RELEASE}T-backbone.ckpt"),
        Variant(
            "mamba2d_small",
            "M2D-S",
            {"dims": (96, 192, 384, 576), "depths": (3, 12, 14, 3)},
            f"{_RELEASE}S-backbone.ckpt",
        ),
        Variant("mamba2d_v1_tiny", "M2D-T, version 1", {"expansion": 2.0}, model=Mamba2DV1),
    ),
    parts=(
        ("2D-Mamba wavefront scan", "2D scan of token mixer 2D_local", wavefront_scan),
        ("M2D token mixer", "token mixer 2D_local", WavefrontMixer),
        ("local path", "local_path", LocalPath),
        ("multi-head self-attention with rotary positions", "RopeAttention", Attention),
        ("residual scale, block", "res_scale1, res_scale2", Block),
        ("classifier", "MlpHead", MlpHead),
        ("Mamba2D", "Mamba2D", Mamba2D),
    ),
    timed=("mamba2d_tiny",),
)
