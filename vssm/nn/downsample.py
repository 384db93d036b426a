"""Between the stages of a pyramid: half the size, more channels, channels-last."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssm.nn.conv import ChannelsLastConv2d
from vssm.nn.norm import BranchLayerNorm, StreamLayerNorm


class ConvDownsample(nn.Module):
    """A 3 x 3 convolution of stride 2, then LayerNorm; odd sizes are rounded up.

    >>> ConvDownsample(4, 8)(torch.randn(1, 7, 6, 4)).shape
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
        self.conv = ChannelsLastConv2d(in_channels, channels, kernel_size=3, stride=2, padding=1, **dd)
        self.norm = StreamLayerNorm(channels, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class PatchMerging(nn.Module):
    """Two by two neighbours side by side, LayerNorm, one linear map (Swin, arXiv 2103.14030); odd sizes are padded.

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
