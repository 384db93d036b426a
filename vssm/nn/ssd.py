"""The mixer of VSSD: non-causal state-space duality."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.nn.conv import ChannelsLastConv2d
from vssm.nn.linear import Linear
from vssm.nn.norm import BranchLayerNorm
from vssm.nn.step import draw_step_bias
from vssm.ops import noncausal_ssd
from vssm.values import widened


@register_notrace_module
class NoncausalSSD(nn.Module):
    """Projection, depthwise convolution, SiLU, one state per head over the whole map, norm, gate, projection.

    VSSD's mixer (arXiv 2407.18559), which is Mamba-2's (arXiv 2405.21060) without order and decay. What is written to
    the state and what reads it, B and C, is convolved with the input; the gate is linear.

    Args:
        dim: channels of the map; `expansion` times as many inside.
        heads: each has a state and a step size of its own; their number divides the inner channels.
        state: size of the state of each channel.
        expansion: inner channels per outer channel.

    Raises:
        ValueError: the heads do not divide the inner channels.

    >>> NoncausalSSD(8, heads=2)(torch.randn(2, 3, 5, 8)).shape
    torch.Size([2, 3, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        state: int = 64,
        expansion: float = 2.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        inner = widened(dim, expansion, "expansion")
        if inner % heads:
            raise ValueError(f"{heads} heads share {inner} channels; expected a number of heads that divides them")
        scanned = inner + 2 * state
        self.heads, self.inner, self.state = heads, inner, state
        # Outputs of in_proj: the gate, then what is convolved, input, B and C, and the step size of each head.
        self.in_proj = Linear(dim, inner + scanned + heads, bias=False, **dd)
        self.conv = ChannelsLastConv2d(scanned, scanned, kernel_size=3, padding=1, groups=scanned, **dd)
        self.dt_bias = nn.Parameter(torch.empty(heads, **dd))
        self.A_log = nn.Parameter(torch.empty(heads, **dd))
        self.D = nn.Parameter(torch.ones(heads, **dd))
        self.norm = BranchLayerNorm(inner, **dd)
        self.out_proj = Linear(inner, dim, bias=False, **dd)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Mamba-2's initialisation: A from 1 to 16, step sizes from 0.001 to 0.1."""
        draw_step_bias(self.dt_bias)
        self.A_log.uniform_(1, 16).log_()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) in and out."""
        z, uBC, delta = self.in_proj(x).split([self.inner, self.inner + 2 * self.state, self.heads], dim=-1)
        uBC = F.silu(self.conv(uBC)).flatten(1, 2)
        u, B, C = uBC.split([self.inner, self.state, self.state], dim=-1)
        A = self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)).exp()
        y = noncausal_ssd(u.unflatten(-1, (self.heads, -1)), delta.flatten(1, 2), A, B, C, self.D, self.dt_bias)
        return self.out_proj(self.norm(y.flatten(2)).view_as(z) * z)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, state={self.state}"
