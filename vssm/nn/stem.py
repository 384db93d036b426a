"""From an image (batch, channels, height, width) to the first channels-last map."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.nn.conv import ChannelsLastConv2d
from vssm.nn.norm import BranchLayerNorm, StreamLayerNorm


def to_channels_last(image: Tensor, in_chans: int) -> Tensor:
    """(batch, channels, height, width) -> (batch, height, width, channels), contiguous."""
    if image.dim() != 4 or image.shape[1] != in_chans:
        raise ValueError(
            f"the input has shape {tuple(image.shape)}; expected (batch, {in_chans} channels, height, width): convert "
            f"the images, or build the model with in_chans"
        )
    return image.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)


@register_notrace_module  # reads shapes
class PatchStem(nn.Module):
    """One convolution over patches, then a norm if given: the embedding of Vim, and of the first VMamba with a norm.

    Without padding: pixels beyond the last whole patch are not read.

    Args:
        in_chans: channels of the image.
        channels: channels of the map.
        patch_size: side of a patch, in pixels.
        stride: from one patch to the next, in pixels; the patch size if not given.
        norm: makes the norm from the number of channels.

    >>> PatchStem(3, 8, patch_size=16, stride=8)(torch.randn(1, 3, 64, 47)).shape
    torch.Size([1, 7, 4, 8])
    """

    first_conv = "proj"

    def __init__(
        self,
        in_chans: int,
        channels: int,
        patch_size: int = 4,
        stride: int | None = None,
        norm: type[nn.Module] = nn.Identity,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.in_chans = in_chans
        self.patch_size = patch_size
        self.stride = stride or patch_size
        self.proj = ChannelsLastConv2d(
            in_chans, channels, kernel_size=patch_size, stride=self.stride, device=device, dtype=dtype
        )
        self.norm = norm(channels, device=device, dtype=dtype)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """How many patches an image of height x width pixels has along each side."""
        if min(height, width) < self.patch_size:
            raise ValueError(
                f"the image is {height} x {width} pixels; expected at least one patch, "
                f"{self.patch_size} x {self.patch_size}: enlarge the image"
            )
        return (height - self.patch_size) // self.stride + 1, (width - self.patch_size) // self.stride + 1

    def forward(self, image: Tensor) -> Tensor:
        self.grid(*image.shape[-2:])  # refuses images smaller than a patch
        return self.norm(self.proj(to_channels_last(image, self.in_chans)))


@register_notrace_module  # reads shapes
class ConvStem(nn.Module):
    """Two 3 x 3 convolutions of stride 2, each with a LayerNorm, GELU between: stride 4, odd sizes rounded up.

    >>> ConvStem(3, 8)(torch.randn(1, 3, 65, 32)).shape
    torch.Size([1, 17, 8, 8])
    """

    first_conv = "conv1"
    stride = 4

    def __init__(
        self,
        in_chans: int,
        channels: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        self.conv1 = ChannelsLastConv2d(in_chans, channels // 2, kernel_size=3, stride=2, padding=1, **dd)
        self.norm1 = BranchLayerNorm(channels // 2, **dd)
        self.act = nn.GELU()
        self.conv2 = ChannelsLastConv2d(channels // 2, channels, kernel_size=3, stride=2, padding=1, **dd)
        self.norm2 = StreamLayerNorm(channels, **dd)

    def forward(self, image: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(to_channels_last(image, self.in_chans))))
        return self.norm2(self.conv2(x))
