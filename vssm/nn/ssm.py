"""The state-space core that families share: parameters of every direction, their initialisation, and the scan."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssm.nn.reading import ReadsParameters
from vssm.nn.step import draw_step_bias
from vssm.ops import CAST, RATES, Form, Layout, ScanTable, directed_linear, selective_scan, sum_gate


class SelectiveScan(ReadsParameters):
    """Selective state-space model (S6) along the directions of a scan order.

    Step size, B and C are projected token by token, so these projections do not depend on the order and their rows stay
    in raster order; only the recurrence follows the order. Parameters are stacked over the directions, and the
    recurrence is computed in float32 whatever the model's dtype.

    Args:
        channels: of the tokens.
        directions: of the scan order that `forward` will be given.
        state: size of the state of each channel.
        rank: of the step-size projection; Mamba takes a sixteenth of the block's width, rounded up.
        shared: all directions have the same parameters, which are held once, as those of one direction.
        own_inputs: each direction will be given an input of its own. Tokens of either shape are taken; those that are
            announced take fewer kernels.

    >>> scan = SelectiveScan(channels=8, directions=2, state=4, rank=1)
    >>> both_ways = torch.tensor([[0, 1, 2], [2, 1, 0]], dtype=torch.int32)
    >>> scan(torch.randn(5, 3, 8), both_ways).shape
    torch.Size([5, 3, 2, 8])
    """

    def __init__(
        self,
        channels: int,
        directions: int,
        state: int,
        rank: int,
        shared: bool = False,
        own_inputs: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.directions, self.state, self.rank, self.own_inputs = directions, state, rank, own_inputs
        self.sets = sets = 1 if shared else directions  # of parameters
        # Rows of x_proj: step size (rank), then B (state), then C (state).
        self.x_proj = nn.Parameter(torch.empty(sets, rank + 2 * state, channels, **dd))
        self.dt_proj = nn.Parameter(torch.empty(sets, channels, rank, **dd))
        self.dt_bias = nn.Parameter(torch.empty(sets, channels, **dd))
        self.A_log = nn.Parameter(torch.empty(sets, channels, state, **dd))
        self.D = nn.Parameter(torch.empty(sets, channels, **dd))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Mamba's initialisation: decay rates 1, 2, 3 ... over the states, step sizes from 0.001 to 0.1."""
        channels = self.x_proj.shape[2]
        nn.init.uniform_(self.x_proj, -(channels**-0.5), channels**-0.5)
        nn.init.uniform_(self.dt_proj, -(self.rank**-0.5), self.rank**-0.5)
        draw_step_bias(self.dt_bias)
        for rate, column in enumerate(self.A_log.unbind(-1), 1):  # in place, as FSDP's parameters are sharded
            column.fill_(math.log(rate))
        nn.init.ones_(self.D)

    def forward(
        self,
        tokens: Tensor,
        order: ScanTable | Tensor | None,
        z: Tensor | None = None,
        scale: float = 1.0,
        *,
        segment: int | None = None,
        merge: bool = False,
        skip: Tensor | None = None,
    ) -> Tensor:
        """The outputs of all directions, or their sum; with z the sum times scale * silu(z).

        Args:
            tokens: (batch, tokens, channels), read by all directions, or (batch, tokens, directions, channels).
            order: the token that each direction visits at each step, a ScanTable or (directions, steps) int32; None
                for raster order.
            z: (batch, tokens, channels).
            scale: of the gate; 1 / directions makes the sum a mean.
            segment: the state starts anew every `segment` steps; None never.
            merge: sum over the directions, as a gate does anyway. Norms take the sum themselves.
            skip: (directions, channels), in place of D.

        Returns:
            (batch, tokens, directions, channels), or (batch, tokens, channels) with merge or z.
        """
        delta, B, C = self.project(tokens)
        merge = merge and z is None
        D = self._each(self.D) if skip is None else _wide(skip)
        y = self._scan(tokens, delta, B, C, D, order=order, segment=segment, merge=merge)
        return y if z is None else sum_gate(y, z, scale)

    def states(
        self, tokens: Tensor, order: ScanTable | Tensor | None, *, segment: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The states themselves, and the C that reads them: an output is (states * C[..., None, :]).sum(-1) + D u.

        Args:
            tokens, order, segment: as in `forward`.

        Returns:
            (batch, tokens, directions, channels, state), in float32 at least, and (batch, tokens, directions, state).
        """
        delta, B, C = self.project(tokens)
        how = {"order": order, "segment": segment, "dtype": torch.promote_types(tokens.dtype, torch.float32)}
        if self.state > 1:
            return self._scan(tokens, delta, B, None, None, **how), C
        # One state, read by a one, is an output: what every backend is fastest at.
        return self._scan(tokens, delta, B, torch.ones_like(B), None, **how)[..., None], C

    def _scan(self, tokens: Tensor, delta: Tensor, B: Tensor, C: Tensor | None, D: Tensor | None, **how: Any) -> Tensor:
        _, weight, rates = self.read(tokens)
        if self.sets < self.directions:
            weight, rates = (shared.expand(self.directions, -1, -1) for shared in (weight, rates))
        return selective_scan(tokens, delta, rates, B, C, D, delta_bias=self.step_bias(), delta_weight=weight, **how)

    def _each(self, parameter: Tensor) -> Tensor:
        """A parameter of every direction, in float32 at least."""
        parameter = _wide(parameter)
        if self.sets < self.directions:
            parameter = parameter.expand(self.directions, *parameter.shape[1:])
        return parameter

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the tokens select: delta (batch, tokens, directions, rank), the step size before its own projection,
        bias and softplus, and B and C (batch, tokens, directions, state)."""
        sets, own_inputs = self.sets, tokens.dim() == 4
        if own_inputs == self.own_inputs:
            weight, *_ = self.read(tokens)
        else:
            weight, *_ = self.read_as(self._to_read(tokens.is_cuda, own_inputs), tokens)
        if weight.dim() == 3:
            delta, BC = directed_linear(tokens, weight).split_with_sizes([self.rank, 2 * self.state], -1)
        else:  # one matrix product for all directions
            rows = F.linear(tokens.flatten(2) if own_inputs and sets > 1 else tokens, weight)
            BC, delta = rows.split_with_sizes([sets * 2 * self.state, sets * self.rank], -1)
            if not own_inputs or sets > 1:
                batch, count = tokens.shape[:2]
                BC = BC.view(batch, count, sets, 2 * self.state)
                delta = delta.view(batch, count, sets, self.rank)
                if sets < self.directions:
                    BC, delta = (part.expand(-1, -1, self.directions, -1) for part in (BC, delta))
        B, C = BC.chunk(2, -1)
        return delta, B, C

    def to_read(self, on_gpu: bool) -> dict[str, Form]:
        return self._to_read(on_gpu, self.own_inputs)

    def _to_read(self, on_gpu: bool, own_inputs: bool) -> dict[str, Form]:
        """x_proj with the rows of B and C before those of the step size, dt_proj and A_log.

        A GPU multiplies by all directions' weights side by side, a CPU by one after the other.
        """
        if not own_inputs or self.sets == 1:
            for_tokens = Form(Layout.STACKED, last=self.rank)
        else:
            for_tokens = Form(Layout.SIDE_BY_SIDE, last=self.rank) if on_gpu else CAST
        for_steps = Form(Layout.SIDE_BY_SIDE) if on_gpu and self.sets == self.directions else CAST
        return {"x_proj": for_tokens, "dt_proj": for_steps, "A_log": RATES}

    def rates(self) -> Tensor:
        """A, the decay rates: (directions, channels, state), negative."""
        return -torch.exp(self._each(self.A_log))

    def step_bias(self) -> Tensor:
        """The bias of the step sizes before softplus: (directions, channels)."""
        return self._each(self.dt_bias)

    def extra_repr(self) -> str:
        channels = self.x_proj.shape[2]
        return f"channels={channels}, directions={self.directions}, state={self.state}, rank={self.rank}"


class TwiceBiasedScan(SelectiveScan):
    """A selective scan that adds the bias of its step sizes twice, as PlainMamba and MambaVision do.

    official: the bias is part of dt_proj and is handed to the scan as well. Here: the same, for the weights' sake.
    """

    def step_bias(self) -> Tensor:
        return 2 * super().step_bias()


def _wide(parameter: Tensor) -> Tensor:
    if parameter.dtype == torch.float32:
        return parameter
    return parameter.to(torch.promote_types(parameter.dtype, torch.float32))
