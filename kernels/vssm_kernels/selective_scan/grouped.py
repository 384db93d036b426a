"""The selective scan in plain torch on any device: exponentials of a group of steps at a time, then one fused
multiply-add a step. States exist for one group only: the backward saves the state before each group and walks the
group again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.dispatch import Backend
from vssm_kernels.saturation import saturate
from vssm_kernels.selective_scan.arguments import ScanArguments

_GROUP = 16  # steps; 16 x (batch 8, directions 2, channels 384, state 16) floats are 6 MB


@dataclass
class _Group:
    """Inputs of consecutive steps, as (batch, directions, steps, ...), and how to write back along them."""

    token: Tensor  # (directions, steps)
    empty: Tensor  # (directions, steps), where there is no token
    u: Tensor
    delta: Tensor  # after bias and softplus
    B: Tensor
    C: Tensor | None
    anew: list[bool]

    def rows_of(self, values: Tensor) -> Tensor:
        """(batch, tokens, directions, ...) -> (batch, directions, steps, ...), zeros at empty steps."""
        rows = values.transpose(1, 2)[:, _directions(self.token), self.token.clamp(min=0)]
        return rows.masked_fill(self._empty_rows(rows), 0)

    def add_to(self, values: Tensor, rows: Tensor) -> None:
        """The way back, in place; tokens visited twice receive the sum, in the order of the steps."""
        rows = rows.masked_fill(self._empty_rows(rows), 0)
        target = values.transpose(1, 2)
        for step in range(rows.shape[2]):
            token = self.token[:, step].clamp(min=0)
            direction = torch.arange(len(token), device=token.device)
            target[:, direction, token] += rows[:, :, step]

    def _empty_rows(self, rows: Tensor) -> Tensor:
        return self.empty.view(*self.empty.shape, *[1] * (rows.dim() - 3))


class _Walk:
    """Widened inputs, group by group."""

    def __init__(self, args: ScanArguments):
        present = [tensor for tensor in args.tensors() if tensor is not None]
        self.wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in present) else torch.float32
        self.args = args
        self.A = args.A.to(self.wide)
        self.D = None if args.D is None else args.D.to(self.wide)[:, None]
        self.bias = None if args.delta_bias is None else args.delta_bias.to(self.wide)[:, None]
        self.u = args.u.unsqueeze(2).expand(args.row_shape) if args.shared_input else args.u
        raster = torch.arange(args.tokens, device=args.u.device).expand(args.directions, -1)
        self.order = raster if args.order is None else args.order.table.long()
        self.starts = range(0, args.steps, _GROUP)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.wide, device=self.u.device)

    def state(self) -> Tensor:
        args = self.args
        return self.zeros(args.batch, args.directions, args.channels, args.state)

    def group(self, start: int) -> _Group:
        args = self.args
        token = self.order[:, start : start + _GROUP]
        anew = [args.segment > 0 and (start + i) % args.segment == 0 for i in range(token.shape[1])]
        group = _Group(token, token < 0, token, token, token, None, anew)
        group.u, group.B = (group.rows_of(values).to(self.wide) for values in (self.u, args.B))
        group.C = None if args.C is None else group.rows_of(args.C).to(self.wide)
        delta = group.rows_of(args.delta).to(self.wide)
        group.delta = F.softplus(delta if self.bias is None else delta + self.bias)
        return group

    def run(self, group: _Group, state: Tensor) -> tuple[Tensor, Tensor]:
        """Decays and states after each step of a group: (batch, directions, steps, channels, state), twice."""
        decay = torch.exp(group.delta[..., None] * self.A[:, None])
        states = (group.delta * group.u)[..., None] * group.B[..., None, :]
        for step, anew in enumerate(group.anew):
            if not anew:
                states[:, :, step].addcmul_(decay[:, :, step], state)
            state = states[:, :, step]
        return decay, states


def scan(args: ScanArguments, save: bool = False) -> tuple[Tensor, None]:
    walk = _Walk(args)
    output = walk.zeros(*args.output_shape)
    state = walk.state()
    for start in walk.starts:
        group = walk.group(start)
        _, states = walk.run(group, state)
        state = states[:, :, -1]
        if group.C is None:
            group.add_to(output, states)
            continue
        y = (states @ group.C[..., None])[..., 0]
        group.add_to(output, y if walk.D is None else y + walk.D * group.u)
    return saturate(output, args.output_dtype), None


def scan_backward(args: ScanArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    walk = _Walk(args)
    du, ddelta = walk.zeros(*args.row_shape), walk.zeros(*args.row_shape)
    dA, dB = walk.zeros(*args.A.shape), walk.zeros(*args.B.shape)
    dC = None if args.C is None else walk.zeros(*args.C.shape)
    dD, dbias = (walk.zeros(args.directions, args.channels) for _ in range(2))
    dstate = walk.state()
    for start, before in reversed(list(_states_before(walk))):
        group = walk.group(start)
        decay, states = walk.run(group, before)
        dy = group.rows_of(gradient).to(walk.wide)
        if group.C is None:
            dstates = dy.clone()
        else:
            dstates = dy[..., None] * group.C[..., None, :]
            group.add_to(dC, (dy[..., None, :] @ states)[..., 0, :])
        for step in reversed(range(len(group.anew))):
            dstate = dstates[:, :, step].add_(dstate)
            dstate = torch.zeros_like(dstate) if group.anew[step] else dstate * decay[:, :, step]
        # From here on `decay` holds the decayed state.
        previous = torch.cat([before[:, :, None], states[:, :, :-1]], dim=2)
        fresh = torch.tensor(group.anew, device=decay.device)
        decay.mul_(previous).masked_fill_(fresh[:, None, None], 0)
        through_decay = dstates * decay
        through_input = (dstates @ group.B[..., None])[..., 0]
        slope = -torch.expm1(-group.delta)  # softplus' in terms of softplus
        step_gradient = ((through_decay * walk.A[:, None]).sum(-1) + through_input * group.u) * slope
        du_rows = through_input * group.delta
        if walk.D is not None:
            du_rows = du_rows + walk.D * dy
            dD += (dy * group.u).sum((0, 2))
        dA += torch.einsum("bkscn,bksc->kcn", through_decay, group.delta)
        dbias += step_gradient.sum((0, 2))
        group.add_to(du, du_rows)
        group.add_to(ddelta, step_gradient)
        group.add_to(dB, ((group.delta * group.u)[..., None, :] @ dstates)[..., 0, :])
    return args.cast(du.sum(2) if args.shared_input else du, ddelta, dA, dB, dC, dD, dbias)


def _states_before(walk: _Walk) -> Iterator[tuple[int, Tensor]]:
    """Each group's first step with the state before it."""
    state = walk.state()
    for start in walk.starts:
        yield start, state
        state = walk.run(walk.group(start), state)[1][:, :, -1].clone()


def _directions(token: Tensor) -> Tensor:
    return torch.arange(token.shape[0], device=token.device)[:, None]


BACKEND = Backend("grouped", scan, scan_backward, why_not=lambda args: None)
