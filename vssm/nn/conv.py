"""Convolution and batch norm of channels-last maps."""

from __future__ import annotations

from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.nn.linear import WEIGHT_AND_BIAS
from vssm.nn.reading import ReadsParameters, product_and_bias
from vssm.ops import Form, bias_silu


@register_notrace_module
class ChannelsLastConv2d(nn.Conv2d, ReadsParameters):
    """nn.Conv2d from (batch, height, width, channels) to (batch, height', width', channels').

    The permutations are views: torch's channels_last memory format is this layout, so nothing is copied. It shares the
    cast of its parameters under autocast with the other layers of its block.

    >>> import torch
    >>> ChannelsLastConv2d(4, 6, kernel_size=3, stride=2, padding=1)(torch.randn(1, 9, 7, 4)).shape
    torch.Size([1, 5, 4, 6])
    """

    def to_read(self, on_gpu: bool) -> dict[str, Form]:
        return WEIGHT_AND_BIAS

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, *self.read(x))

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x.permute(0, 3, 1, 2), weight, bias).permute(0, 2, 3, 1)


def convolved_silu(conv: nn.Module, x: Tensor) -> Tensor:
    """SiLU(conv(x)), of a map (batch, height, width, channels).

    >>> import torch
    >>> convolved_silu(ChannelsLastConv2d(4, 6, kernel_size=3), torch.randn(1, 9, 7, 4)).shape
    torch.Size([1, 7, 5, 6])
    """
    return bias_silu(*product_and_bias(conv, x))


@register_notrace_module  # torch's batch norm checks shapes
class ChannelsLastBatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d of (batch, height, width, channels), in front of MambaVision's classifier.

    >>> import torch
    >>> ChannelsLastBatchNorm(4)(torch.randn(2, 5, 7, 4)).shape
    torch.Size([2, 5, 7, 4])
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
