"""State-space duality as the paper writes its recurrence, forward and adjoint: two loops over steps.

    delta_t = softplus(delta_t + delta_bias)
    h_t     = exp(delta_t A) h_{t-1} + delta_t u_t B_t^T
    y_t     = h_t C_t + D u_t

Mamba-2, arXiv 2405.21060: the selective scan with one A for all channels and states of a head, so that a step decays
its whole state by one number. All other backends are compared with this file, which is never optimised. Both functions
are made of operations that autograd records: tests compare `recurrence_backward` with autograd through `recurrence`,
and second derivatives are those of `recurrence_backward`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.dispatch import reference_backend
from vssm_kernels.saturation import saturate
from vssm_kernels.ssd.arguments import SSDArguments


def recurrence(args: SSDArguments, save: bool = False) -> tuple[Tensor, None]:
    """(batch, tokens, directions, heads, channels), or with merge the sum over the directions, in u's dtype."""
    walk = _Walk(args)
    output = walk.u.new_zeros(args.row_shape)
    h = walk.initial
    for step in range(args.steps):
        u, delta, B, C = walk.read(step)
        h = _scaled(h, torch.exp(delta * walk.A)) + _outer(delta[..., None] * u, B)
        y = (h @ C[..., None])[..., 0]
        if walk.D is not None:
            y = y + walk.D[..., None] * u
        output = walk.add(output, step + args.shift, y)
    return saturate(output.sum(2) if args.merge else output, args.u.dtype), None


def recurrence_backward(args: SSDArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of `args.tensors()`, None where a tensor is, each in its tensor's dtype.

    With dh the gradient of the loss with respect to h_t, walking the steps backwards:

        dh      = dy_t C_t^T + exp(delta_{t+1} A) dh_{t+1}
        du      = delta dh B + D dy;   dB = delta dh^T u;   dC = h_t^T dy
        decay   = exp(delta A) <dh, h_{t-1}>, the gradient with respect to delta A
        ddelta  = u^T dh B + A decay,  times softplus' = sigmoid
        dA      = sum_t delta decay;   dD = sum_t dy^T u
    """
    walk = _Walk(args)
    gradient = args.per_direction(gradient.to(walk.u.dtype))
    states = [walk.initial]
    for step in range(args.steps):
        u, delta, B, _ = walk.read(step)
        states.append(_scaled(states[-1], torch.exp(delta * walk.A)) + _outer(delta[..., None] * u, B))

    du, ddelta, dB, dC = (torch.zeros_like(tensor) for tensor in (walk.u, walk.delta, walk.B, walk.C))
    dA, dD, dbias = (torch.zeros_like(walk.A) for _ in range(3))
    dh = torch.zeros_like(walk.initial)
    for step in reversed(range(args.steps)):
        u, delta, B, C = walk.read(step)
        dy = walk.take(gradient, step + args.shift)
        dh = dh + _outer(dy, C)
        read = (dh @ B[..., None])[..., 0]
        decay = torch.exp(delta * walk.A)
        ddecay = decay * (dh * states[step]).sum((-1, -2))
        ddelta_t = ((read * u).sum(-1) + walk.A * ddecay) * -torch.expm1(-delta)  # softplus' in its own value
        du_t = delta[..., None] * read
        if walk.D is not None:
            du_t = du_t + walk.D[..., None] * dy
            dD = dD + (dy * u).sum((0, -1))
        dA = dA + (delta * ddecay).sum(0)
        dbias = dbias + ddelta_t.sum(0)
        du = walk.add(du, step, du_t)
        ddelta = walk.add(ddelta, step, ddelta_t)
        dB = walk.add(dB, step, delta[..., None] * (dh.mT @ u[..., None])[..., 0])
        dC = walk.add(dC, step, (states[step + 1].mT @ dy[..., None])[..., 0])
        dh = _scaled(dh, decay)
    grouped = (*args.B.shape[:4], -1, args.state)  # reshape and not unflatten, which torch cannot vectorize
    dB, dC = (each.reshape(grouped).sum(4) for each in (dB, dC))
    return args.cast(du, ddelta, dA, dB, dC, dD, dbias, dh)


class _Walk:
    """Widened inputs, B and C of every head, and the token each direction visits at each step."""

    def __init__(self, args: SSDArguments):
        wide = args.wide_dtype
        self.u, self.delta, self.A, self.B, self.C, self.D, self.bias, self.initial = (
            None if tensor is None else tensor.to(wide) for tensor in args.tensors()
        )
        if args.shared_input:
            self.u = self.u.unsqueeze(2).expand(args.row_shape)
        self.B, self.C = (each.repeat_interleave(args.heads // args.groups, 3) for each in (self.B, self.C))
        if self.initial is None:
            self.initial = self.u.new_zeros(args.batch, args.directions, args.heads, args.channels, args.state)
        device = self.u.device
        raster = torch.arange(args.tokens, device=device).expand(args.directions, -1)
        order = raster if args.order is None else args.order.table.long()
        self.order = F.pad(order, (0, 1), value=-1)  # what is shifted out of the last step is written nowhere
        self.batches = torch.arange(args.batch, device=device)[:, None]
        self.direction = torch.arange(args.directions, device=device)

    def read(self, step: int) -> Iterator[Tensor]:
        """u, delta after bias and softplus, B and C at a step: (batch, directions, heads, ...)."""
        delta = self.take(self.delta, step)
        delta = F.softplus(delta if self.bias is None else delta + self.bias)
        return self.take(self.u, step), delta, self.take(self.B, step), self.take(self.C, step)

    def take(self, values: Tensor, step: int) -> Tensor:
        token = self.order[:, step]
        rows = values[self.batches, token.clamp(min=0), self.direction]
        return torch.where(self._visited(token, rows), rows, torch.zeros_like(rows))

    def add(self, values: Tensor, step: int, rows: Tensor) -> Tensor:
        token = self.order[:, step]
        rows = torch.where(self._visited(token, rows), rows, torch.zeros_like(rows))
        return values.index_put((self.batches, token.clamp(min=0), self.direction), rows, accumulate=True)

    @staticmethod
    def _visited(token: Tensor, rows: Tensor) -> Tensor:
        """An empty step reads zeros and writes nothing."""
        return (token >= 0).view(1, -1, *[1] * (rows.dim() - 2))


def _scaled(h: Tensor, decay: Tensor) -> Tensor:
    return decay[..., None, None] * h


def _outer(u: Tensor, B: Tensor) -> Tensor:
    return u[..., None] * B[..., None, :]


BACKEND = reference_backend(recurrence, recurrence_backward)
