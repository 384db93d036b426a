"""The selective scan in plain torch on any device: exponentials a chunk of steps at a time, then one fused
multiply-add a step. States exist for one chunk only: the backward keeps the state before each chunk and walks the
chunk again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.dispatch import Backend
from vssm_kernels.saturation import saturate
from vssm_kernels.selective_scan.arguments import ScanArguments

_CHUNK = 16  # steps; a chunk of 16 x (batch 8, directions 2, channels 384, state 16) floats is 6 MB


@dataclass
class _Chunk:
    """Inputs of consecutive steps, as (batch, directions, steps, ...), and how to write back along them."""

    token: Tensor  # (directions, steps)
    visited: Tensor  # (directions, steps, 1)
    u: Tensor
    delta: Tensor  # after bias and softplus
    B: Tensor
    C: Tensor | None
    anew: list[bool]

    def rows_of(self, values: Tensor) -> Tensor:
        """(batch, tokens, directions, ...) -> (batch, directions, steps, ...), zeros at empty steps."""
        rows = values.transpose(1, 2)[:, _directions(self.token), self.token.clamp(min=0)]
        return rows * self._mask(rows)

    def add_to(self, values: Tensor, rows: Tensor) -> None:
        """The way back, in place; tokens visited twice receive the sum, in the order of the steps."""
        rows = rows * self._mask(rows)
        target = values.transpose(1, 2)
        for step in range(rows.shape[2]):
            token = self.token[:, step].clamp(min=0)
            direction = torch.arange(len(token), device=token.device)
            target[:, direction, token] += rows[:, :, step]

    def _mask(self, rows: Tensor) -> Tensor:
        return self.visited.view(*self.visited.shape[:2], *[1] * (rows.dim() - 3))


class _Walk:
    """Widened inputs, chunk by chunk."""

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
        self.starts = range(0, args.steps, _CHUNK)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.wide, device=self.u.device)

    def state(self) -> Tensor:
        args = self.args
        return self.zeros(args.batch, args.directions, args.channels, args.state)

    def chunk(self, start: int) -> _Chunk:
        args = self.args
        token = self.order[:, start : start + _CHUNK]
        visited = (token >= 0).to(self.wide)[..., None]
        anew = [args.segment > 0 and (start + i) % args.segment == 0 for i in range(token.shape[1])]
        chunk = _Chunk(token, visited, token, token, token, None, anew)
        chunk.u, chunk.B = (chunk.rows_of(values).to(self.wide) for values in (self.u, args.B))
        chunk.C = None if args.C is None else chunk.rows_of(args.C).to(self.wide)
        delta = chunk.rows_of(args.delta).to(self.wide)
        chunk.delta = F.softplus(delta if self.bias is None else delta + self.bias)
        return chunk

    def run(self, chunk: _Chunk, state: Tensor) -> tuple[Tensor, Tensor]:
        """Decays and states after each step of a chunk: (batch, directions, steps, channels, state), twice."""
        decay = torch.exp(chunk.delta[..., None] * self.A[:, None])
        states = (chunk.delta * chunk.u)[..., None] * chunk.B[..., None, :]
        for step, anew in enumerate(chunk.anew):
            if not anew:
                states[:, :, step].addcmul_(decay[:, :, step], state)
            state = states[:, :, step]
        return decay, states


def scan(args: ScanArguments, save: bool = False) -> tuple[Tensor, None]:
    walk = _Walk(args)
    output = walk.zeros(*args.output_shape)
    state = walk.state()
    for start in walk.starts:
        chunk = walk.chunk(start)
        _, states = walk.run(chunk, state)
        state = states[:, :, -1]
        if chunk.C is None:
            chunk.add_to(output, states)
            continue
        y = (states @ chunk.C[..., None])[..., 0]
        chunk.add_to(output, y if walk.D is None else y + walk.D * chunk.u)
    return saturate(output, args.u.dtype), None


def scan_backward(args: ScanArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    walk = _Walk(args)
    du, ddelta = walk.zeros(*args.row_shape), walk.zeros(*args.row_shape)
    dA, dB = walk.zeros(*args.A.shape), walk.zeros(*args.B.shape)
    dC = None if args.C is None else walk.zeros(*args.C.shape)
    dD, dbias = (walk.zeros(args.directions, args.channels) for _ in range(2))
    dstate = walk.state()
    for start, before in reversed(list(_states_before(walk))):
        chunk = walk.chunk(start)
        decay, states = walk.run(chunk, before)
        dy = chunk.rows_of(gradient).to(walk.wide)
        if chunk.C is None:
            dstates = dy.clone()
        else:
            dstates = dy[..., None] * chunk.C[..., None, :]
            chunk.add_to(dC, (dy[..., None, :] @ states)[..., 0, :])
        for step in reversed(range(len(chunk.anew))):
            dstate = dstates[:, :, step].add_(dstate)
            dstate = torch.zeros_like(dstate) if chunk.anew[step] else dstate * decay[:, :, step]
        # From here on decay holds decay times the state before: what the decay multiplied.
        previous = torch.cat([before[:, :, None], states[:, :, :-1]], dim=2)
        fresh = torch.tensor(chunk.anew, device=decay.device)
        decay.mul_(previous).masked_fill_(fresh[:, None, None], 0)
        through_decay = dstates * decay
        through_input = (dstates @ chunk.B[..., None])[..., 0]
        slope = -torch.expm1(-chunk.delta)  # softplus' in terms of softplus
        step_gradient = ((through_decay * walk.A[:, None]).sum(-1) + through_input * chunk.u) * slope
        du_rows = through_input * chunk.delta
        if walk.D is not None:
            du_rows = du_rows + walk.D * dy
            dD += (dy * chunk.u).sum((0, 2))
        dA += torch.einsum("bkscn,bksc->kcn", through_decay, chunk.delta)
        dbias += step_gradient.sum((0, 2))
        chunk.add_to(du, du_rows)
        chunk.add_to(ddelta, step_gradient)
        chunk.add_to(dB, ((chunk.delta * chunk.u)[..., None, :] @ dstates)[..., 0, :])
    return args.cast(du.sum(2) if args.shared_input else du, ddelta, dA, dB, dC, dD, dbias)


def _states_before(walk: _Walk) -> Iterator[tuple[int, Tensor]]:
    """Each chunk's first step with the state in front of it."""
    state = walk.state()
    for start in walk.starts:
        yield start, state
        state = walk.run(walk.chunk(start), state)[1][:, :, -1].clone()


def _directions(token: Tensor) -> Tensor:
    return torch.arange(token.shape[0], device=token.device)[:, None]


BACKEND = Backend("chunked", scan, scan_backward, why_not=lambda args: None)
