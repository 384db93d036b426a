"""The MLPs of the blocks: plain, and with a depthwise convolution between the two layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.nn.conv import ChannelsLastConv2d
from vssm.nn.linear import Linear
from vssm.nn.reading import product_and_bias
from vssm.nn.recompute import is_gelu, product_of_recomputed, saves_activations
from vssm.ops import bias_gelu

POINTWISE_CONV = partial(ChannelsLastConv2d, kernel_size=1)


@register_notrace_module
class LeanMlp(nn.Module):
    """Linear, GELU, linear, without saving the output of the GELU, the largest tensor of a block.

    Used by VMamba and most families: (..., dim) in and out.

    >>> LeanMlp(4, 16)(torch.randn(2, 3, 5, 4)).shape
    torch.Size([2, 3, 5, 4])
    """

    def __init__(
        self, dim: int, hidden: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ):
        super().__init__()
        self.fc1 = Linear(dim, hidden, device=device, dtype=dtype)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden, dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        # The product adds its bias at no cost; it is the gradient that pays.
        if not (saves_activations() and is_gelu(self.act)):
            return product_of_recomputed(self.fc2, self.act, self.fc1(x))
        return product_of_recomputed(self.fc2, bias_gelu, *product_and_bias(self.fc1, x))


@register_notrace_module
class ConvMlp(nn.Module):
    """An MLP with a 3 x 3 depthwise convolution on its hidden map, before the GELU (MSVMamba, GroupMamba).

    A map (batch, height, width, dim) in and out.

    Args:
        dim, hidden: channels outside and inside.
        residual: add the convolution to the hidden map (MSVMamba) instead of replacing the map by it (GroupMamba).
        pointwise: makes the first and the last layer from numbers of channels. 1 x 1 convolutions (MSVMamba) and
            nn.Linear (GroupMamba) compute the same; they start from different values.

    >>> ConvMlp(4, 16)(torch.randn(2, 3, 5, 4)).shape
    torch.Size([2, 3, 5, 4])
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        residual: bool = True,
        pointwise: Callable[..., nn.Module] = POINTWISE_CONV,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.residual = residual
        self.fc1 = pointwise(dim, hidden, **dd)
        self.conv = ChannelsLastConv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden, **dd)
        self.fc2 = pointwise(hidden, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        local, bias = product_and_bias(self.conv, x)
        return product_of_recomputed(self.fc2, bias_gelu, x + local if self.residual else local, bias)
