"""Between the stages of a pyramid: half the size, more channels, channels-last maps; odd sizes are rounded up."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssm.nn.conv import ChannelsLastConv2d, ConvNormAct
from vssm.nn.norm import BranchLayerNorm, StreamLayerNorm
from vssm.nn.reading import product_and_bias
from vssm.ops import bias_relu


class ConvDownsample(nn.Module):
    """A 3 x 3 convolution of stride 2, then a norm.

    VMamba, MSVMamba and GroupMamba with the defaults; GrootVL without bias and with eps 1e-6; Mamba2D with bias and
    MambaVision without, neither with a norm.

    Args:
        in_channels, channels: before and after.
        bias: of the convolution.
        norm: makes the norm from the number of channels; nn.Identity for none.

    >>> ConvDownsample(4, 8)(torch.randn(1, 7, 6, 4)).shape
    torch.Size([1, 4, 3, 8])
    """

    stride = 2

    def __init__(
        self,
        in_channels: int,
        channels: int,
        bias: bool = True,
        norm: Callable[..., nn.Module] = StreamLayerNorm,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.conv = ChannelsLastConv2d(in_channels, channels, kernel_size=3, stride=2, padding=1, bias=bias, **dd)
        self.norm = norm(channels, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class PatchMerging(nn.Module):
    """Two by two neighbours side by side, LayerNorm, one linear map (Swin, arXiv 2103.14030).

    VMamba's first version, MSVMamba's, EfficientVMamba, LocalVMamba, Res-VMamba, MHS-VM.

    >>> PatchMerging(4, 8)(torch.randn(1, 7, 6, 4)).shape
    torch.Size([1, 4, 3, 8])
    """

    stride = 2

    def __init__(
        self,
        in_channels: int,
        channels: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm = BranchLayerNorm(4 * in_channels, **dd)
        self.reduction = nn.Linear(4 * in_channels, channels, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        # Of the four neighbours the row alternates fastest, as in the checkpoints: (0,0), (1,0), (0,1), (1,1).
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class InvertedDownsample(nn.Module):
    """To four times the new channels, a depthwise 3 x 3 convolution of stride 2, to the new channels, batch norm.

    VSSD and Spatial-Mamba (from MLLA, arXiv 2405.16605). ReLU follows the first two convolutions; all have biases.

    >>> InvertedDownsample(4, 8)(torch.randn(1, 7, 6, 4)).shape
    torch.Size([1, 4, 3, 8])
    """

    stride = 2

    def __init__(
        self,
        in_channels: int,
        channels: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        hidden = 4 * channels
        self.widen = ChannelsLastConv2d(in_channels, hidden, kernel_size=1, **dd)
        self.depthwise = ChannelsLastConv2d(hidden, hidden, kernel_size=3, stride=2, padding=1, groups=hidden, **dd)
        self.narrow = ConvNormAct(hidden, channels, bias=True, apply_act=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.widen, self.depthwise):
            x = bias_relu(*product_and_bias(conv, x))
        return self.narrow(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
