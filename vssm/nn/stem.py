"""From an image (batch, channels, height, width) to the first channels-last map.

Each stem names its first convolution in `first_conv`, for other numbers of input channels, and in `stride` the pixels
per position of its map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module, to_2tuple
from torch import Tensor, nn

from vssm.nn.conv import ChannelsLastConv2d, ConvNormAct
from vssm.nn.norm import BranchLayerNorm, StreamLayerNorm


def to_channels_last(image: Tensor, in_chans: int) -> Tensor:
    """(batch, channels, height, width) -> (batch, height, width, channels), contiguous."""
    if image.dim() != 4 or image.shape[1] != in_chans:
        raise ValueError(
            f"the input has shape {tuple(image.shape)}; expected (batch, {in_chans} channels, height, width): convert "
            f"the images, or build the model with in_chans"
        )
    if not image.is_floating_point():
        raise ValueError(
            f"the input is {image.dtype}; expected floating-point numbers: divide bytes by 255, then subtract the mean "
            f"and divide by the deviation of model.pretrained_cfg"
        )
    return image.permute(0, 2, 3, 1).contiguous()


@register_notrace_module  # reads shapes
class PaddedPatchConv(ChannelsLastConv2d):
    """A convolution with a patch at every multiple of its stride; zeros on the right and at the bottom fill them up.

    A map (batch, height, width, channels) in, (batch, ceil(height / stride), ceil(width / stride), channels) out. In
    the stems of LocalVim, RSMamba and PlainMamba. Kernel and stride are square, the kernel no smaller than the stride.

    >>> PaddedPatchConv(3, 8, kernel_size=16, stride=8)(torch.randn(1, 64, 47, 3)).shape
    torch.Size([1, 8, 6, 8])
    """

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        below, right = (-size % stride + kernel - stride for size in x.shape[1:3])
        return super().forward(F.pad(x, (0, 0, 0, right, 0, below)) if below or right else x)


@register_notrace_module  # reads shapes
class PatchStem(nn.Module):
    """One convolution over patches, then a norm if given.

    Vim; VMamba's first version, EfficientVMamba, LocalVMamba, MHS-VM (stride 4, norm); Mamba2D (7 x 7 pixels, stride 4,
    padding 2, norm); LocalVim (padding None); RSMamba (padding None, stride 8, without bias). Pixels beyond the last
    whole patch are not read unless padded.

    Args:
        in_chans: channels of the image.
        channels: channels of the map.
        patch_size: side of a patch, in pixels.
        stride: from one patch to the next, in pixels; the patch size if not given.
        norm: makes the norm from the number of channels.
        bias: of the convolution.
        padding: pixels of zeros around the image; None for zeros on the right and at the bottom alone, as many as a
            patch at every multiple of the stride needs.

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
        norm: Callable[..., nn.Module] = nn.Identity,
        bias: bool = True,
        padding: int | None = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        self.patch_size = patch_size
        self.stride = stride or patch_size
        self.padding = padding
        conv = PaddedPatchConv if padding is None else ChannelsLastConv2d
        self.proj = conv(in_chans, channels, patch_size, self.stride, padding or 0, bias=bias, **dd)
        self.norm = norm(channels, **dd)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """How many patches an image of height x width pixels has along each side."""
        if self.padding is None:
            return -(-height // self.stride), -(-width // self.stride)
        around = 2 * self.padding
        if min(height, width) + around < self.patch_size:
            raise ValueError(
                f"the image is {height} x {width} pixels; expected at least one patch, "
                f"{self.patch_size - around} x {self.patch_size - around}: enlarge the image"
            )
        rows, columns = ((side + around - self.patch_size) // self.stride + 1 for side in (height, width))
        return rows, columns

    def forward(self, image: Tensor) -> Tensor:
        self.grid(*image.shape[-2:])  # refuses images smaller than a patch
        return self.norm(self.proj(to_channels_last(image, self.in_chans)))


@register_notrace_module  # reads shapes
class ConvStem(nn.Module):
    """Two 3 x 3 convolutions of stride 2, each with a LayerNorm, GELU between: stride 4, odd sizes rounded up.

    VMamba, MSVMamba; GrootVL with eps 1e-6.

    >>> ConvStem(3, 8)(torch.randn(1, 3, 65, 32)).shape
    torch.Size([1, 17, 8, 8])
    """

    first_conv = "conv1"
    stride = 4

    def __init__(
        self,
        in_chans: int,
        channels: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        self.conv1 = ChannelsLastConv2d(in_chans, channels // 2, kernel_size=3, stride=2, padding=1, **dd)
        self.norm1 = BranchLayerNorm(channels // 2, eps=eps, **dd)
        self.act = nn.GELU()
        self.conv2 = ChannelsLastConv2d(channels // 2, channels, kernel_size=3, stride=2, padding=1, **dd)
        self.norm2 = StreamLayerNorm(channels, eps=eps, **dd)

    def forward(self, image: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(to_channels_last(image, self.in_chans))))
        return self.norm2(self.conv2(x))


@register_notrace_module  # reads shapes
class BatchNormStem(nn.Module):
    """Convolutions without bias, each with batch norm and ReLU, then whatever projects to the first map.

    | family | layers | projection |
    |---|---|---|
    | MambaVision (eps 1e-4), HRVMamba | (hidden, 3, 2), (channels, 3, 2) | |
    | GroupMamba | (hidden, 7, 2), (hidden, 3, 1), (hidden, 3, 1) | ConvDownsample |
    | PlainMamba | (64, 7, 2), one or two (64, 3, 1) | PaddedPatchConv of 8 x 8, stride 8 |

    Args:
        in_chans: channels of the image.
        layers: channels, kernel size and stride of each convolution; odd sizes are rounded up.
        projection: the last layer, from map to map.
        eps: of the batch norms.

    >>> BatchNormStem(3, [(8, 3, 2), (16, 3, 2)])(torch.randn(2, 3, 65, 32)).shape
    torch.Size([2, 17, 8, 16])
    """

    first_conv = "layers.0.conv"

    def __init__(
        self,
        in_chans: int,
        layers: Sequence[tuple[int, int, int]],
        projection: nn.Module | None = None,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        self.stride = math.prod(stride for *_, stride in layers) * to_2tuple(getattr(projection, "stride", 1))[0]
        convs, width = [], in_chans
        for channels, kernel_size, stride in layers:
            convs.append(ConvNormAct(width, channels, kernel_size, stride, norm_kwargs={"eps": eps}, **dd))
            width = channels
        self.layers = nn.Sequential(*convs)
        self.projection = projection or nn.Identity()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The size of the map of an image, in positions."""
        return -(-height // self.stride), -(-width // self.stride)

    def forward(self, image: Tensor) -> Tensor:
        x = to_channels_last(image, self.in_chans).permute(0, 3, 1, 2)
        return self.projection(self.layers(x).permute(0, 2, 3, 1))


@register_notrace_module  # reads shapes
class ResidualStem(nn.Module):
    """Stride 4 in five convolutions with batch norm, a residual pair among them (VSSD, Spatial-Mamba; from MLLA).

    A 3 x 3 convolution of stride 2 to half of the channels; two 3 x 3 ones added to its output; a 3 x 3 one of stride 2
    to four times the channels; a 1 x 1 one to the channels. ReLU follows all but the last of the pair and the last of
    all. Odd sizes are rounded up.

    >>> ResidualStem(3, 8)(torch.randn(2, 3, 65, 32)).shape
    torch.Size([2, 17, 8, 8])
    """

    first_conv = "conv1.conv"
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
        half = channels // 2
        self.in_chans = in_chans
        self.conv1 = ConvNormAct(in_chans, half, kernel_size=3, stride=2, **dd)
        self.residual = nn.Sequential(
            ConvNormAct(half, half, kernel_size=3, **dd),
            ConvNormAct(half, half, kernel_size=3, apply_act=False, **dd),
        )
        self.widen = ConvNormAct(half, 4 * channels, kernel_size=3, stride=2, **dd)
        self.narrow = ConvNormAct(4 * channels, channels, apply_act=False, **dd)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv1(to_channels_last(image, self.in_chans).permute(0, 3, 1, 2))
        return self.narrow(self.widen(x + self.residual(x))).permute(0, 2, 3, 1)
