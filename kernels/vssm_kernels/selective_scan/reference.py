"""The selective scan as the papers write it, forward and adjoint: two loops over steps, in any float dtype.

    delta_t = softplus(delta_t + delta_bias)
    h_t     = exp(delta_t A) h_{t-1} + delta_t B_t u_t
    y_t     = C_t h_t + D u_t

Mamba, arXiv 2312.00752, equations 2a and 2b with A discretised by zero-order hold and B by Euler's rule, as every
official implementation does. All other backends are compared with this file, which is never optimised. Both functions
are made of operations that autograd records: tests compare `scan_backward` with autograd through `scan`, and second
derivatives are those of `scan_backward`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.dispatch import reference_backend
from vssm_kernels.saturation import saturate
from vssm_kernels.selective_scan.arguments import ScanArguments


def scan(args: ScanArguments, save: bool = False) -> tuple[Tensor, None]:
    """(batch, tokens, directions, channels) outputs, or states with C=None, in u's dtype."""
    walk = _Walk(args)
    output = walk.u.new_zeros(args.output_shape)
    state = walk.initial_state()
    for step in range(args.steps):
        u_t, delta_t, B_t, C_t = walk.read(step)
        if walk.starts_anew(step):
            state = torch.zeros_like(state)
        state = torch.exp(delta_t[..., None] * walk.A) * state + (delta_t * u_t)[..., None] * B_t[:, :, None, :]
        if C_t is None:
            output_t = state
        else:
            output_t = (state * C_t[:, :, None, :]).sum(-1)
            if walk.D is not None:
                output_t = output_t + walk.D * u_t
        output = walk.add(output, step, output_t)
    return saturate(output, args.output_dtype), None


def scan_backward(args: ScanArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D and delta_bias (None where the tensor is), each in its tensor's dtype.

    With dh the gradient of the loss with respect to h_t, walking the steps backwards:

        dh      = exp(delta_{t+1} A) dh_{t+1} + C_t dy_t
        ddelta  = sum_n dh (A exp(delta A) h_{t-1} + B u),  times softplus' = sigmoid
        du      = sum_n dh delta B + D dy;   dB = sum_c dh delta u;   dC = sum_c dy h_t
        dA      = sum_t dh delta exp(delta A) h_{t-1};   dD = sum_t dy u
    """
    walk = _Walk(args)
    gradient = gradient.to(walk.u.dtype)
    states = [walk.initial_state()]
    for step in range(args.steps):
        u_t, delta_t, B_t, _ = walk.read(step)
        previous = torch.zeros_like(states[-1]) if walk.starts_anew(step) else states[-1]
        states.append(torch.exp(delta_t[..., None] * walk.A) * previous + (delta_t * u_t)[..., None] * B_t[:, :, None])

    du, ddelta, dB = (torch.zeros_like(tensor) for tensor in (walk.u, walk.delta, walk.B))
    dA = torch.zeros_like(walk.A)
    dC = None if walk.C is None else torch.zeros_like(walk.C)
    dD = None if walk.D is None else torch.zeros_like(walk.D)
    dbias = None if walk.bias is None else torch.zeros_like(walk.bias)
    dstate = walk.initial_state()
    for step in reversed(range(args.steps)):
        u_t, delta_t, B_t, C_t = walk.read(step)
        dy_t = walk.take(gradient, step)
        previous = torch.zeros_like(states[step]) if walk.starts_anew(step) else states[step]
        decay = torch.exp(delta_t[..., None] * walk.A)
        if C_t is None:
            dstate = dstate + dy_t
        else:
            dstate = dstate + C_t[:, :, None, :] * dy_t[..., None]
            dC = walk.add(dC, step, (dy_t[..., None] * states[step + 1]).sum(2))
        ddelta_t = (dstate * (walk.A * decay * previous + u_t[..., None] * B_t[:, :, None, :])).sum(-1)
        ddelta_t = ddelta_t * -torch.expm1(-delta_t)  # softplus' written in its own value: 1 - exp(-softplus)
        du_t = (dstate * B_t[:, :, None, :]).sum(-1) * delta_t
        if walk.D is not None:
            du_t = du_t + walk.D * dy_t
            dD = dD + (dy_t * u_t).sum(0)
        dB = walk.add(dB, step, (dstate * (delta_t * u_t)[..., None]).sum(2))
        dA = dA + (dstate * delta_t[..., None] * decay * previous).sum(0)
        dbias = None if dbias is None else dbias + ddelta_t.sum(0)
        du = walk.add(du, step, du_t)
        ddelta = walk.add(ddelta, step, ddelta_t)
        dstate = torch.zeros_like(dstate) if walk.starts_anew(step) else decay * dstate
    if args.shared_input:
        du = du.sum(2)
    return args.cast(du, ddelta, dA, dB, dC, dD, dbias)


class _Walk:
    """Widened inputs and the token each direction visits at each step."""

    def __init__(self, args: ScanArguments):
        present = [tensor for tensor in args.tensors() if tensor is not None]
        wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in present) else torch.float32
        self.u, self.delta, self.A, self.B, self.C, self.D, self.bias = (
            None if tensor is None else tensor.to(wide) for tensor in args[:7]
        )
        if args.shared_input:
            self.u = self.u.unsqueeze(2).expand(self.delta.shape)
        self.args = args
        device = self.u.device
        raster = torch.arange(args.tokens, device=device).expand(args.directions, -1)
        self.order = raster if args.order is None else args.order.table.long()
        self.batches = torch.arange(args.batch, device=device)[:, None]
        self.direction = torch.arange(args.directions, device=device)

    def initial_state(self) -> Tensor:
        args = self.args
        return self.u.new_zeros(args.batch, args.directions, args.channels, args.state)

    def starts_anew(self, step: int) -> bool:
        return self.args.segment > 0 and step % self.args.segment == 0

    def read(self, step: int) -> Iterator[Tensor | None]:
        """u, delta after bias and softplus, B and C at a step: (batch, directions, ...)."""
        delta = self.take(self.delta, step)
        delta = F.softplus(delta if self.bias is None else delta + self.bias)
        C = None if self.C is None else self.take(self.C, step)
        return self.take(self.u, step), delta, self.take(self.B, step), C

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


BACKEND = reference_backend(scan, scan_backward)
