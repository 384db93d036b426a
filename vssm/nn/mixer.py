"""Token mixers: the frame of VMamba's and its descendants' scans of a map, and Vim's of a sequence.

A mixer of maps takes (batch, height, width, dim) and returns the same; a mixer of tokens takes (batch, tokens, dim)
and the height and width of the grid of patches. Either fits into `vssm.nn.Block`.
"""

from __future__ import annotations

import math

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.nn.conv import ChannelsLastConv2d, convolved_silu
from vssm.nn.linear import Linear
from vssm.nn.norm import BranchLayerNorm
from vssm.nn.order_table import OrderTable
from vssm.nn.product import split_product
from vssm.nn.reading import has_hooks
from vssm.nn.recompute import GATE, Gate, product_of_recomputed, saves_activations
from vssm.nn.ssm import SelectiveScan
from vssm.ops import ScanTable, causal_conv1d
from vssm.scan import OrderFunction, bidirectional, cross
from vssm.values import widened


class GatedMixer(nn.Module):
    """in_proj, mix, out_proj; with `gated`, silu of the second half of in_proj's outputs multiplies what mix returns.

    The frame of the mixers that come from VMamba. A subclass sets `gated`, makes `in_proj` (with twice as many outputs
    if gated), `out_proj` and what it mixes with, and defines `mix`; and `halves` where in_proj's have another order.
    Registered by `register_notrace_module` of timm, it is one node of a graph of torch.fx.

    >>> class Pooling(GatedMixer):
    ...     def __init__(self, dim):
    ...         super().__init__()
    ...         self.gated, self.in_proj, self.out_proj = True, Linear(dim, 2 * dim), Linear(dim, dim)
    ...
    ...     def mix(self, x):
    ...         return x.mean((1, 2), keepdim=True).expand_as(x)
    >>> Pooling(4)(torch.randn(2, 3, 5, 4)).shape
    torch.Size([2, 3, 5, 4])
    """

    gated: bool
    in_proj: nn.Module
    out_proj: nn.Module

    def mix(self, x: Tensor) -> Tensor:
        """(batch, height, width, inner channels) in and out."""
        raise NotImplementedError

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is mixed and what gates it, the halves of in_proj's outputs: (batch, height, width, dim) in."""
        return split_product(self.in_proj, x)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) in and out."""
        if not self.gated:
            return self.out_proj(self.mix(self.in_proj(x)))
        x, z = self.halves(x)
        tokens = self.mix(x).flatten(1, 2), z.flatten(1, 2)
        return product_of_recomputed(self.out_proj, GATE, *tokens).unflatten(1, x.shape[1:3])


@register_notrace_module
class SS2D(GatedMixer):
    """VMamba's mixer (arXiv 2401.10166): depthwise convolution, SiLU, scan along an order, norm, between projections.

    | family | state | expansion | conv_bias | gated | scan_order |
    |---|---|---|---|---|---|
    | VMamba | 1 | 1 or 2 | no | no | cross |
    | VMamba's first version, Res-VMamba, LocalVMamba | 16 | 2 | yes | yes | cross, or a list's |
    | EfficientVMamba | 16 | 2 | yes | yes | atrous |

    A family that changes one step overrides its method: `merge` to gate each direction before the sum (LocalVMamba),
    `mix` to convolve or scan otherwise (Spatial-Mamba, HRVMamba).

    Args:
        dim: channels of the map; `expansion` times as many inside.
        state: size of the state-space model's state.
        expansion: inner channels per outer channel.
        conv_bias: whether the depthwise convolution has a bias.
        gated: multiply the normed output by silu of a second projection.
        scan_order: a function (height, width) -> ScanOrder.

    >>> SS2D(8, gated=True)(torch.randn(2, 3, 5, 8)).shape
    torch.Size([2, 3, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        state: int = 1,
        expansion: float = 1.0,
        conv_bias: bool = False,
        gated: bool = False,
        scan_order: OrderFunction = cross,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        inner = widened(dim, expansion, "expansion")
        self.gated = gated
        self.order_table = OrderTable(scan_order)
        self.in_proj = Linear(dim, 2 * inner if gated else inner, bias=False, **dd)
        self.conv = ChannelsLastConv2d(inner, inner, kernel_size=3, padding=1, groups=inner, bias=conv_bias, **dd)
        self.scan = SelectiveScan(inner, scan_order(2, 2).directions, state, rank=math.ceil(dim / 16), **dd)
        self.norm = BranchLayerNorm(inner, **dd)
        self.out_proj = Linear(inner, dim, bias=False, **dd)

    def mix(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        order = self.order_table(height, width, x.device)
        x = convolved_silu(self.conv, x)
        return self.merge(self.scan(x.flatten(1, 2), order)).view_as(x)

    def merge(self, directions: Tensor) -> Tensor:
        """(batch, tokens, directions, channels) to (batch, tokens, channels): the norm of the directions' sum."""
        return self.norm(directions, merge=True)


@register_notrace_module
class VimMixer(nn.Module):
    """Vim's mixer (arXiv 2401.09417): causal convolution, SiLU and scan in every direction; their mean, gated.

    Every direction has a convolution and state-space parameters of its own. With one direction this is Mamba's block
    (LBMamba, RSMamba); LocalVim gates and merges its four directions otherwise.

    Args:
        dim: channels of the tokens; twice as many inside.
        state: size of the state-space model's state.
        conv_width: taps of the causal convolution.
        scan_order: of all tokens, a class token among them included: a function (height, width) -> ScanOrder, where
            height and width are those of the grid of patches.
        shared: all directions have the same parameters (RSMamba), which are held once.

    A family with another scan names it in `scan_class`.

    >>> VimMixer(8)(torch.randn(2, 15, 8), height=3, width=5).shape
    torch.Size([2, 15, 8])
    """

    scan_class: type[SelectiveScan] = SelectiveScan

    def __init__(
        self,
        dim: int,
        state: int = 16,
        conv_width: int = 4,
        scan_order: OrderFunction = bidirectional,
        shared: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        inner = 2 * dim
        self.directions = scan_order(2, 2).directions
        sets = 1 if shared else self.directions
        self.order_table = OrderTable(scan_order)
        self.in_proj = Linear(dim, 2 * inner, bias=False, **dd)
        self.conv_weight = nn.Parameter(torch.empty(sets, inner, conv_width, **dd))
        self.conv_bias = nn.Parameter(torch.empty(sets, inner, **dd))
        self.scan = self.scan_class(inner, self.directions, state, math.ceil(dim / 16), shared, own_inputs=True, **dd)
        self.out_proj = Linear(inner, dim, bias=False, **dd)
        self.gate = Gate(1 / self.directions)  # a mean
        for parameter in (self.conv_weight, self.conv_bias):
            nn.init.uniform_(parameter, -(conv_width**-0.5), conv_width**-0.5)
        # official: only the forward direction's step-size bias gets Mamba's initialisation; the others start at zero.
        nn.init.zeros_(self.scan.dt_bias[1:].detach())

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(batch, tokens, dim) in and out; `height` and `width` of the grid of patches."""
        order = self.order_table(height, width, tokens.device)
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        x = self.convolved(x, order)
        if not saves_activations() and not has_hooks(self.scan):  # hooks see the scan called as in training
            return self.out_proj(self.scan(x, order, z, scale=self.gate.scale))
        # Save the directions' sum and z, which is half of in_proj's output in memory anyway; recompute the gated sum.
        total = self.scan(x, order, merge=True)
        return product_of_recomputed(self.out_proj, self.gate, total, z)

    def convolved(self, x: Tensor, order: ScanTable) -> Tensor:
        """(batch, tokens, channels) along each direction, with SiLU: (batch, tokens, directions, channels)."""
        weight, bias = self.conv_weight, self.conv_bias
        if len(weight) < self.directions:
            weight, bias = weight.expand(self.directions, -1, -1), bias.expand(self.directions, -1)
        return causal_conv1d(x, weight, bias, order, silu=True)
