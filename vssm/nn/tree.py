"""The mixer of GrootVL: states along the minimum spanning tree of the map."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.nn.conv import ChannelsLastConv2d, convolved_silu
from vssm.nn.linear import Linear
from vssm.nn.norm import BranchLayerNorm
from vssm.nn.product import split_product
from vssm.nn.recompute import GATE, product_of_recomputed
from vssm.nn.ssm import SelectiveScan
from vssm.ops import grid_tree, readout, tree_scan
from vssm.values import widened


class TreeScan(SelectiveScan):
    """A selective state-space model with one state whose neighbours are those in a tree.

    Step size, B and C are those of SelectiveScan with one direction; every vertex reads all others, less the longer the
    path between the two is. The arithmetic is float32 whatever the model's dtype.

    Args:
        channels: of the tokens.
        rank: of the step-size projection.

    >>> scan = TreeScan(channels=8, rank=1)
    >>> x = torch.randn(2, 3, 5, 8)
    >>> states, C = scan(x.flatten(1, 2), grid_tree(x))
    >>> states.shape, C.shape
    (torch.Size([2, 15, 8]), torch.Size([2, 15, 1]))
    """

    def __init__(
        self,
        channels: int,
        rank: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(channels, directions=1, state=1, rank=rank, device=device, dtype=dtype)

    def forward(self, tokens: Tensor, tree: Tensor) -> tuple[Tensor, Tensor]:
        """The states, and the C that reads them.

        Args:
            tokens: (batch, tokens, channels).
            tree: (batch, 4, tokens) int32, see `grid_tree`.

        Returns:
            (batch, tokens, channels) in float32 at least, and (batch, tokens, 1).
        """
        step, B, C = (part.squeeze(2) for part in self.project(tokens))
        _, weight, rates = self.read(tokens)
        delta = F.linear(step, weight.view(-1, self.rank))
        return tree_scan(tokens, delta, rates.flatten(), B.squeeze(-1), self.step_bias().flatten(), tree), C


@register_notrace_module
class TreeMixer(nn.Module):
    """Projection, depthwise convolution, SiLU, a tree's states, norm, readout, norm, gate, projection.

    GrootVL's mixer, later called MambaTree's (arXiv 2406.02395): neighbours that are most alike after the convolution
    are joined to a tree, anew for every map, and states move along its edges, both ways.

    Args:
        dim: channels of the map; `expansion` times as many inside.
        expansion: inner channels per outer channel.

    >>> TreeMixer(8)(torch.randn(2, 3, 5, 8)).shape
    torch.Size([2, 3, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        expansion: float = 2.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        inner = widened(dim, expansion, "expansion")
        self.in_proj = Linear(dim, 2 * inner, bias=False, **dd)
        self.conv = ChannelsLastConv2d(inner, inner, kernel_size=3, padding=1, groups=inner, bias=False, **dd)
        self.scan = TreeScan(inner, rank=math.ceil(dim / 16), **dd)
        self.state_norm = BranchLayerNorm(inner, **dd)
        self.norm = BranchLayerNorm(inner, **dd)
        self.out_proj = Linear(inner, dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) in and out."""
        x, z = split_product(self.in_proj, x)
        x = convolved_silu(self.conv, x)
        tokens = x.flatten(1, 2)
        states, C = self.scan(tokens, grid_tree(x))
        y = readout(self.state_norm(states).unsqueeze(1), C, self.scan.D, tokens)
        y = product_of_recomputed(self.out_proj, GATE, self.norm(y), z.flatten(1, 2))
        return y.unflatten(1, x.shape[1:3])
