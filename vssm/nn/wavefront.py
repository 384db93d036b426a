"""The mixer of Mamba2D: a state-space model over two dimensions, from above and from the left."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.nn.linear import Linear
from vssm.nn.reading import ReadsParameters
from vssm.nn.recompute import product_of_recomputed
from vssm.nn.step import draw_step_bias
from vssm.ops import CAST, RATES, Form, Layout, directed_linear, wavefront_scan
from vssm.values import widened


class WavefrontScan(ReadsParameters):
    """Selective state-space model of a map: a state comes from above and from the left, at rates of their own.

    Mamba2D's (arXiv 2412.16146). Step sizes, B and C are projected position by position; the recurrence is
    `vssm.ops.wavefront_scan`, in float32 whatever the model's dtype.

    Args:
        channels: of the map.
        state: size of the state of each channel.
        rank: of the step-size projections.
        reverse: states come from below and from the right.
        shared_input: one B for both ways, and a bias of what projects to step sizes, B and C (Mamba2D's first version).

    >>> WavefrontScan(channels=8, state=4, rank=1)(torch.randn(2, 3, 5, 8)).shape
    torch.Size([2, 3, 5, 8])
    """

    def __init__(
        self,
        channels: int,
        state: int,
        rank: int,
        reverse: bool = False,
        shared_input: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.state, self.rank, self.reverse, self.ways_of_B = state, rank, reverse, 1 if shared_input else 2
        # Rows of x_proj: step sizes (twice the rank), B (the state, once for each of its ways), C (state).
        self.x_proj = Linear(channels, 2 * rank + (self.ways_of_B + 1) * state, bias=shared_input, **dd)
        self.dt_proj = nn.Parameter(torch.empty(2, channels, rank, **dd))
        self.dt_bias = nn.Parameter(torch.empty(2, channels, **dd))
        self.A_log = nn.Parameter(torch.empty(2, channels, state, **dd))
        self.D = nn.Parameter(torch.ones(channels, **dd))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Mamba's initialisation: rates 1, 2, 3 ... over the states, step sizes from 0.001 to 0.1, alike both ways."""
        nn.init.uniform_(self.dt_proj, -(self.rank**-0.5), self.rank**-0.5)
        draw_step_bias(self.dt_bias[0])
        self.dt_bias[1] = self.dt_bias[0]
        rates = torch.arange(1, self.state + 1, dtype=torch.float32, device=self.A_log.device)
        self.A_log.copy_(torch.log(rates).expand_as(self.A_log))

    def to_read(self, on_gpu: bool) -> dict[str, Form]:
        return {"dt_proj": Form(Layout.SIDE_BY_SIDE) if on_gpu else CAST, "A_log": RATES}

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) in and out."""
        grid = x.shape[1:3]
        delta, B, C = self.x_proj(x).split([2 * self.rank, self.ways_of_B * self.state, self.state], dim=-1)
        weight, rates = self.read(x)
        delta = directed_linear(delta.flatten(1, 2).unflatten(-1, (2, -1)), weight).unflatten(1, grid)
        B = B.unflatten(-1, (self.ways_of_B, -1)).expand(-1, -1, -1, 2, -1)
        return wavefront_scan(x, delta, rates, B, C, self.D, delta_bias=self.dt_bias, reverse=self.reverse)

    def extra_repr(self) -> str:
        return f"channels={len(self.D)}, state={self.state}, rank={self.rank}, reverse={self.reverse}"


@register_notrace_module
class WavefrontMixer(nn.Module):
    """Projection, GELU, wavefront scan, GELU, projection; beside it, what mixes neighbours.

    A mixer of maps: it fits into `vssm.nn.Block`.

    Args:
        dim: channels of the map; `expansion` times as many are scanned.
        state: size of the state of each channel.
        expansion: scanned channels per outer channel.
        reverse, shared_input: see WavefrontScan.
        local: a module from the map to a map of the same shape, whose output is added.

    >>> WavefrontMixer(8)(torch.randn(2, 3, 5, 8)).shape
    torch.Size([2, 3, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        state: int = 16,
        expansion: float = 1.0,
        reverse: bool = False,
        shared_input: bool = False,
        local: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        inner = widened(dim, expansion, "expansion")
        self.in_proj = Linear(dim, inner, **dd)
        self.scan = WavefrontScan(inner, state, math.ceil(dim / 16), reverse, shared_input, **dd)
        self.out_proj = Linear(inner, dim, **dd)
        self.local = local

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) in and out."""
        y = product_of_recomputed(self.out_proj, F.gelu, self.scan(F.gelu(self.in_proj(x))))
        return y if self.local is None else y + self.local(x)
