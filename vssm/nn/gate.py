"""Gates of channels: squeeze and excitation, in the variants of the families."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vssm.nn.linear import Linear


class ChannelGate(nn.Module):
    """Squeeze and excitation (arXiv 1709.01507): multiply each channel by a number in 0 to 1 computed from the mean.

    The means over all positions pass through two linear layers and a sigmoid.

    | family | norm | act | bias | reduction |
    |---|---|---|---|---|
    | MSVMamba, HRVMamba | none | ReLU | no | 8 |
    | GroupMamba, by `weights` of another map | none | ReLU | yes | 16 |
    | EfficientVMamba, LocalMamba ("BiAttention") | BranchLayerNorm | GELU | yes | 8 |

    Args:
        channels: of the map.
        reduction: channels per hidden channel, rounded down to whole hidden channels.
        norm: makes the norm in front of the mean; only the gate reads the normed map.
        act: makes the activation between the layers.
        bias: of both layers.

    >>> gate = ChannelGate(16)
    >>> gate(torch.randn(2, 7, 5, 16)).shape
    torch.Size([2, 7, 5, 16])
    >>> tokens_of_4_directions = torch.randn(2, 35, 4, 16)
    >>> gate(tokens_of_4_directions, over=1).shape  # a gate of its own for each direction
    torch.Size([2, 35, 4, 16])
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 8,
        norm: Callable[..., nn.Module] = nn.Identity,
        act: Callable[[], nn.Module] = nn.ReLU,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm = norm(channels, **dd)
        self.reduce = Linear(channels, channels // reduction, bias=bias, **dd)
        self.act = act()
        self.expand = Linear(channels // reduction, channels, bias=bias, **dd)

    def weights(self, x: Tensor, over: int | Sequence[int] = (1, 2)) -> Tensor:
        """The gates alone: x's shape with 1 for every dimension in `over`, the dimensions that are averaged."""
        mean = self.norm(x).mean(over, keepdim=True)
        return torch.sigmoid(self.expand(self.act(self.reduce(mean))))

    def forward(self, x: Tensor, over: int | Sequence[int] = (1, 2)) -> Tensor:
        """(batch, height, width, channels) in and out; for tokens, over=1."""
        return x * self.weights(x, over)
