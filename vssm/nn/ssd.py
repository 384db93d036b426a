"""Mixers made of state-space duality: Mamba-2's along any scan order, VSSD's without one, and Hydra's both ways."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.nn.conv import ChannelsLastConv2d, convolved_silu
from vssm.nn.linear import Linear
from vssm.nn.norm import BranchLayerNorm, BranchRMSNorm
from vssm.nn.order_table import OrderTable
from vssm.nn.product import split_product
from vssm.nn.recompute import GATE, product_of_recomputed
from vssm.nn.step import draw_step_bias
from vssm.ops import noncausal_ssd, ssd, sum_gate
from vssm.scan import OrderFunction, bidirectional, cross
from vssm.values import check_divides, widened


class DualityMixer(nn.Module):
    """The frame of Mamba-2's mixer (arXiv 2405.21060) and its descendants'.

    One projection makes all there is: the gate z; the input u and the B and C of each direction, which go through a
    depthwise convolution and SiLU; and the step size of each head and direction. A subclass makes its parameters of
    heads and its norm, and ends in `out_proj`.

    Args:
        dim: channels of the map; `expansion` times as many inside.
        heads: each has a state and a step size of its own; their number divides the inner channels. None is the fewest
            with at most 64 channels.
        state: size of the state of each channel.
        expansion: inner channels per outer channel.
        kernel: height and width of the convolution.
        directions: of the scan order.
        shared: all directions read one B and one C.
        groups: of consecutive heads, each with a B and a C of its own; their number divides that of the heads.
        bias: of the two projections.

    Raises:
        ValueError: the heads do not divide the inner channels, or the groups the heads.
    """

    def __init__(
        self,
        dim: int,
        heads: int | None,
        state: int,
        expansion: float,
        kernel: tuple[int, int] = (3, 3),
        directions: int = 1,
        shared: bool = False,
        groups: int = 1,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        inner = widened(dim, expansion, "expansion")
        if heads is None:
            heads = next(heads for heads in range(-(-inner // 64), inner + 1) if inner % heads == 0)
        check_divides(heads, "heads", inner, "channels")
        check_divides(groups, "groups", heads, "heads")
        self.heads, self.inner, self.state, self.directions, self.groups = heads, inner, state, directions, groups
        scanned = inner + (1 if shared else directions) * 2 * groups * state
        self.sizes = [inner, scanned, directions * heads]  # of in_proj's outputs
        padding = tuple(size // 2 for size in kernel)
        self.in_proj = Linear(dim, sum(self.sizes), bias=bias, **dd)
        self.conv = ChannelsLastConv2d(scanned, scanned, kernel, padding=padding, groups=scanned, **dd)
        self.out_proj = Linear(inner, dim, bias=bias, **dd)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What a map (batch, height, width, dim) selects.

        Returns:
            z (batch, tokens, inner); u (batch, tokens, heads, channels); B and C (batch, tokens, directions, groups,
            state), with one direction where it is shared; delta (batch, tokens, directions, heads).
        """
        z, uBC, delta = split_product(self.in_proj, x, self.sizes)
        uBC = convolved_silu(self.conv, uBC).flatten(1, 2)
        u, BC = uBC.split([self.inner, uBC.shape[-1] - self.inner], dim=-1)
        B, C = BC.unflatten(-1, (-1, 2, self.groups, self.state)).unbind(3)
        delta = delta.flatten(1, 2).unflatten(-1, (self.directions, self.heads))
        return z.flatten(1, 2), u.unflatten(-1, (self.heads, -1)), B, C, delta

    def rates(self) -> Tensor:
        """exp(A_log) in float32 at least: A without its sign."""
        return self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)).exp()

    def extra_repr(self) -> str:
        return f"heads={self.heads}, state={self.state}"


@register_notrace_module
class NoncausalSSD(DualityMixer):
    """Projection, depthwise convolution, SiLU, one state per head over the whole map, norm, gate, projection.

    VSSD's mixer (arXiv 2407.18559), which is Mamba-2's without order and decay. The gate is linear.

    Args:
        dim, heads, state, expansion: see DualityMixer.

    >>> NoncausalSSD(8, heads=2)(torch.randn(2, 3, 5, 8)).shape
    torch.Size([2, 3, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        heads: int | None = None,
        state: int = 64,
        expansion: float = 2.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, heads, state, expansion, **dd)
        self.dt_bias = nn.Parameter(torch.empty(self.heads, **dd))
        self.A_log = nn.Parameter(torch.empty(self.heads, **dd))
        self.D = nn.Parameter(torch.ones(self.heads, **dd))
        self.norm = BranchLayerNorm(self.inner, **dd)
        start_as_mamba2(self)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) in and out."""
        z, u, B, C, delta = self.project(x)
        y = noncausal_ssd(u, delta[:, :, 0], self.rates(), B[:, :, 0, 0], C[:, :, 0, 0], self.D, self.dt_bias)
        return self.out_proj(self.norm(y.flatten(2)) * z).unflatten(1, x.shape[1:3])


@register_notrace_module
class SSD(DualityMixer):
    """Projection, depthwise convolution, SiLU, state-space duality along a scan order, gate, norm, projection.

    Mamba-2's mixer (arXiv 2405.21060) for maps: a 3 x 3 convolution instead of a causal one, and directions that read
    one input, with B, C, step sizes and decays of their own, whose outputs are summed.

    Args:
        dim, heads, state, expansion: see DualityMixer.
        scan_order: a function (height, width) -> ScanOrder.

    >>> SSD(8, heads=2)(torch.randn(2, 3, 5, 8)).shape
    torch.Size([2, 3, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        heads: int | None = None,
        state: int = 64,
        expansion: float = 2.0,
        scan_order: OrderFunction = cross,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, heads, state, expansion, directions=scan_order(2, 2).directions, **dd)
        self.order_table = OrderTable(scan_order)
        per_head = (self.directions, self.heads)
        self.dt_bias = nn.Parameter(torch.empty(per_head, **dd))
        self.A_log = nn.Parameter(torch.empty(per_head, **dd))
        self.D = nn.Parameter(torch.ones(per_head, **dd))
        self.norm = BranchRMSNorm(self.inner, **dd)
        start_as_mamba2(self)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) in and out."""
        order = self.order_table(*x.shape[1:3], x.device)
        z, u, B, C, delta = self.project(x)
        y = ssd(u, delta, -self.rates(), B, C, self.D, delta_bias=self.dt_bias, order=order, merge=True)
        return self.out_proj(self.norm(sum_gate(y.flatten(2).unsqueeze(2), z))).unflatten(1, x.shape[1:3])


@register_notrace_module
class HydraMixer(DualityMixer):
    """Hydra's mixer (arXiv 2407.09941): a quasiseparable matrix over the tokens, made from what they hold.

    Below the matrix's diagonal lies one pass of state-space duality, above it the one that walks backwards, and on it a
    number for each head and token. Decays are shared by the directions. The convolution runs along the rows of tokens;
    the norm comes before the gate.

    Args:
        dim, heads, state, expansion, shared, groups, bias: see DualityMixer.
        conv_width: taps of the convolution, an odd number.
        learned_start: the states before the first step are parameters, which all directions share and which start at
            zero, and not zeros.
        scan_order: a function (height, width) -> ScanOrder, whose directions are added up: usually one and its reverse.

    >>> mixer = HydraMixer(8, heads=2)
    >>> mixer(torch.randn(2, 15, 8), 3, 5).shape, mixer(torch.randn(2, 3, 5, 8)).shape
    (torch.Size([2, 15, 8]), torch.Size([2, 3, 5, 8]))
    """

    def __init__(
        self,
        dim: int,
        heads: int | None = None,
        state: int = 64,
        expansion: float = 2.0,
        conv_width: int = 7,
        shared: bool = False,
        groups: int = 1,
        bias: bool = False,
        learned_start: bool = False,
        scan_order: OrderFunction = bidirectional,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        if conv_width % 2 == 0:
            raise ValueError(f"conv_width is {conv_width}; expected an odd number of taps, with a middle one")
        directions = scan_order(2, 2).directions
        super().__init__(dim, heads, state, expansion, (1, conv_width), directions, shared, groups, bias, **dd)
        self.order_table = OrderTable(scan_order)
        self.dt_bias = nn.Parameter(torch.empty(self.heads, **dd))
        self.A_log = nn.Parameter(torch.zeros(self.heads, **dd))
        self.D = nn.Parameter(torch.ones(self.heads, **dd))
        start = (self.heads, self.inner // self.heads, state)
        self.start = nn.Parameter(torch.zeros(start, **dd)) if learned_start else None
        self.diagonal = Linear(self.inner, self.heads, bias=False, **dd)
        self.norm = BranchRMSNorm(self.inner, **dd)
        draw_step_bias(self.dt_bias)

    def forward(self, x: Tensor, *grid: int) -> Tensor:
        """(batch, height, width, dim) in and out; or (batch, tokens, dim) and the height and width of the grid."""
        height, width = grid or x.shape[1:3]
        order = self.order_table(height, width, x.device)
        z, u, B, C, delta = self.project(x.flatten(1, -2).unsqueeze(1))
        A, bias = (each.expand(self.directions, -1) for each in (-self.rates(), self.dt_bias))
        B, C = (each.expand(-1, -1, self.directions, -1, -1) for each in (B, C))
        start = None if self.start is None else self.start.expand(len(u), self.directions, -1, -1, -1)
        y = ssd(u, delta, A, B, C, delta_bias=bias, initial=start, order=order, shift=True, merge=True)
        y = y + (self.diagonal(u.flatten(2)) + self.D)[..., None] * u
        return product_of_recomputed(self.out_proj, GATE, self.norm(y.flatten(2)), z).view_as(x)


@torch.no_grad()
def start_as_mamba2(mixer: DualityMixer) -> None:
    """Mamba-2's initialisation: A from 1 to 16, step sizes from 0.001 to 0.1."""
    draw_step_bias(mixer.dt_bias)
    mixer.A_log.uniform_(1, 16).log_()
