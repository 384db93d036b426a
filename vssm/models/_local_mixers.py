"""The mixers of LocalMamba: those of Vim and VMamba, with a gate of channels for each direction."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn
from torch.nn import functional as F

from vssm.models._searched_orders import LOCAL_VIM, LOCAL_VMAMBA_TINY
from vssm.nn import SS2D, BranchLayerNorm, ChannelGate, OrderTable, VimMixer, convolved_silu
from vssm.ops import weighted_sum
from vssm.scan import OrderFunction, ScanOrder, columns, with_padding_tokens
from vssm.values import widened

_BiAttention = partial(ChannelGate, norm=BranchLayerNorm, act=nn.GELU, bias=True)


def _gated_sum(gate: ChannelGate, directions: Tensor) -> Tensor:
    """(batch, tokens, directions, channels) to (batch, tokens, channels), each direction with a gate of its own."""
    return weighted_sum(directions, gate.weights(directions, over=1).squeeze(1))


@dataclass(frozen=True)
class _OfficialPlaces:
    """The table, (directions, tokens), of whose output each token receives in the official code.

    official: the inverse of the column scan takes the sequence for rows of the grid where it has columns, which is
    right for square grids alone; here: right for all, and this table beside it gives the official numbers.
    """

    order: OrderFunction

    def __call__(self, height: int, width: int) -> ScanOrder:
        down = columns(height, width).table[0]
        rows = torch.arange(height * width)
        taken = down[rows.view(height, width).T.flatten()]
        walks = self.order(height, width).table[:, : height * width]
        by_columns = ((walks == down) | (walks == down.flip(0))).all(1, keepdim=True)
        return ScanOrder(torch.where(by_columns, taken, rows), height * width)


@register_notrace_module
class OfficialColumns(nn.Module):
    """Put the outputs of scans of columns where the official code puts them on grids that are not square.

    Args:
        scan_order: of the scans, a function (height, width) -> ScanOrder.

    >>> from vssm.scan import cross
    >>> OfficialColumns(cross)(torch.arange(6.0).view(1, 6, 1, 1).expand(1, 6, 4, 1), 2, 3)[0, :, 1, 0]
    tensor([0., 4., 3., 2., 1., 5.])
    """

    def __init__(self, scan_order: OrderFunction):
        super().__init__()
        self.order_table = OrderTable(_OfficialPlaces(scan_order))

    def forward(self, directions: Tensor, height: int, width: int) -> Tensor:
        """(batch, tokens, directions, channels) in and out."""
        places = self.order_table(height, width, directions.device).table.long()
        return directions[:, places.T, torch.arange(places.shape[0], device=directions.device)]


@register_notrace_module
class LocalSS2D(SS2D):
    """VMamba's gated mixer with a gate of channels for each direction before their sum.

    Args:
        dim, state, expansion, scan_order: as SS2D's.
        official_columns: see LocalVMamba.

    >>> LocalSS2D(8)(torch.randn(2, 3, 5, 8)).shape
    torch.Size([2, 3, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        state: int = 16,
        expansion: float = 2.0,
        scan_order: OrderFunction = LOCAL_VMAMBA_TINY[0],
        official_columns: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, state, expansion, conv_bias=True, gated=True, scan_order=scan_order, **dd)
        self.channel_gate = _BiAttention(widened(dim, expansion, "expansion"), **dd)
        self.official_columns = OfficialColumns(scan_order) if official_columns else None

    def mix(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        order = self.order_table(height, width, x.device)
        directions = self.scan(convolved_silu(self.conv, x).flatten(1, 2), order)
        if self.official_columns is not None:
            directions = self.official_columns(directions, height, width)
        return self.merge(directions).view_as(x)

    def merge(self, directions: Tensor) -> Tensor:
        return self.norm(_gated_sum(self.channel_gate, directions))


@register_notrace_module
class LocalVimMixer(VimMixer):
    """Vim's mixer with a gate of channels for each direction after that of the tokens; the directions are summed.

    Where windows extend beyond the grid, the convolution computes something from the tokens before them, which the
    scan reads on: they are tokens like others until the outputs are cut.

    Args:
        dim, state: as VimMixer's.
        scan_order: of all tokens, as VimMixer's.
        official_columns: see LocalVim.

    >>> LocalVimMixer(8)(torch.randn(2, 15, 8), height=3, width=5).shape
    torch.Size([2, 15, 8])
    """

    def __init__(
        self,
        dim: int,
        state: int = 16,
        scan_order: OrderFunction = LOCAL_VIM[0],
        official_columns: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, state, scan_order=with_padding_tokens(scan_order), **dd)
        self.channel_gate = _BiAttention(2 * dim, **dd)
        self.official_columns = OfficialColumns(scan_order) if official_columns else None

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(batch, tokens, dim) in and out; `height` and `width` of the grid of patches."""
        order = self.order_table(height, width, tokens.device)
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        count = tokens.shape[1]
        if order.tokens > count:
            x = F.pad(x, (0, 0, 0, order.tokens - count))
        directions = self.scan(self.convolved(x, order), order)[:, :count] * F.silu(z).unsqueeze(2)
        if self.official_columns is not None:
            directions = self.official_columns(directions, height, width)
        return self.out_proj(_gated_sum(self.channel_gate, directions))
