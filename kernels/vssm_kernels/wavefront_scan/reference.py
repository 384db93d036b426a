"""The wavefront scan in plain torch, forward and adjoint, in any float dtype: a loop over anti-diagonals.

    delta  = softplus(delta + delta_bias), from above and from the left
    top    = exp(delta_top A_top) h[i-1, j] + delta_top B_top u
    left   = exp(delta_left A_left) h[i, j-1] + delta_left B_left u
    h[i,j] = (top + left) / 2, in the first row left, in the first column below it top
    y[i,j] = C h[i,j] + D u

Mamba2D, arXiv 2412.16146. The positions of an anti-diagonal need only those of the one before it, so each is computed
at once: row i of diagonal d is position (i, d - i), above it lies row i - 1 of diagonal d - 1, and on its left row i of
that. All other backends are compared with this file. Both functions are made of operations that autograd records:
second derivatives are those of `scan_backward`. Files for other programs hold `scan`; in ONNX its loop is one
operation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.dispatch import reference_backend
from vssm_kernels.saturation import saturate
from vssm_kernels.standard import softplus
from vssm_kernels.wavefront_scan.arguments import WavefrontArguments


def scan(args: WavefrontArguments, save: bool = False) -> tuple[Tensor, None]:
    """(batch, height, width, channels) in u's dtype."""
    walk = _Diagonals(args)
    rows = [walk.delta, walk.input, walk.B, walk.C, walk.weight.expand(args.u.shape[0], -1, -1, -1)]

    def step(state: Tensor, row: list[Tensor]) -> tuple[Tensor, Tensor]:
        delta, added, B, C, weight = row
        decay = walk.decay(delta, weight)
        state = decay[:, :, 0] * _above(state) + decay[:, :, 1] * state
        state = state + (added[..., None] * B[:, :, :, None, :]).sum(2)
        return state, (state * C[:, :, None, :]).sum(-1)

    state = walk.initial_state()
    if torch.onnx.is_in_onnx_export() and not torch.jit.is_tracing():
        from torch._higher_order_ops.scan import scan as loop  # here: it takes a second to import

        y = loop(step, state, [tensor.detach().transpose(0, 1) for tensor in rows])[1].transpose(0, 1)
    else:
        outputs = []
        for row in zip(*(tensor.unbind(1) for tensor in rows), strict=True):
            state, output = step(state, row)
            outputs.append(output)
        y = torch.stack(outputs, 1)
    y = walk.back(y)
    if walk.D is not None:
        y = y + walk.D * args.u.to(y.dtype)
    return saturate(y, args.u.dtype), None


def scan_backward(args: WavefrontArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D and delta_bias (None where the tensor is), each in its tensor's dtype.

    With w = 1/2, 1 or 0 the weight of each way into a position, and dh the gradient of the loss with respect to h:

        dh      = C dy + (w exp(delta A))_top dh[i+1, j] + (w exp(delta A))_left dh[i, j+1]
        ddelta  = w sum_n dh (A exp(delta A) h' + B u), h' the state that this way comes from,  times softplus'
        du      = sum_n dh sum_ways w delta B + D dy;   dB = w sum_c dh delta u;   dC = sum_c dy h
        dA      = w sum dh delta exp(delta A) h';       dD = sum dy u
    """
    walk = _Diagonals(args)
    dy = walk.by_diagonals(gradient.to(walk.u.dtype))
    steps = range(walk.delta.shape[1])
    state, states = walk.initial_state(), []  # before each diagonal: above each of its positions, and on their left
    for d in steps:
        states.append(torch.stack([_above(state), state], 2))
        decay = walk.decay(walk.delta[:, d], walk.weight[d])
        state = (decay * states[d] + walk.input[:, d, ..., None] * walk.B[:, d, :, :, None]).sum(2)

    du, ddelta, dB, dC = [], [], [], []
    dA, dstate = torch.zeros_like(walk.A), walk.initial_state()
    for d in reversed(steps):
        delta, u, B, dy_d = walk.delta[:, d], walk.u[:, d, :, None], walk.B[:, d], dy[:, d]
        weight = walk.weight[d, ..., None]
        dC.append((dy_d[..., None] * state).sum(2))
        dstate = dstate + walk.C[:, d, :, None] * dy_d[..., None]
        decay = walk.decay(delta, walk.weight[d])
        through_decay = dstate[:, :, None] * decay * states[d]
        through_input = (dstate[:, :, None] * B[:, :, :, None]).sum(-1) * weight
        ddelta.append(((through_decay * walk.A).sum(-1) + u * through_input) * -torch.expm1(-delta))
        du.append((delta * through_input).sum(2))
        dB.append((dstate[:, :, None] * walk.input[:, d, ..., None]).sum(3))
        dA = dA + (through_decay * delta[..., None]).sum((0, 1))
        top, dstate = (decay * dstate[:, :, None]).unbind(2)
        dstate = dstate + F.pad(top[:, 1:], (0, 0, 0, 0, 0, 1))
        state = states[d][:, :, 1]

    du, ddelta, dB, dC = (walk.back(torch.stack(rows[::-1], 1)) for rows in (du, ddelta, dB, dC))
    gradient, u = gradient.to(du.dtype), args.u.to(du.dtype)
    dD = None
    if walk.D is not None:
        du, dD = du + walk.D * gradient, (gradient * u).sum((0, 1, 2))
    return args.cast(du, ddelta, dA, dB, dC, dD, ddelta.sum((0, 1, 2)))


def _above(state: Tensor) -> Tensor:
    """The states above the next diagonal's rows: those of the row before, and none above the first."""
    return F.pad(state[:, :-1], (0, 0, 0, 0, 1, 0))


class _Diagonals:
    """Widened inputs by anti-diagonals, (batch, diagonals, rows, ...), zeros beside the grid."""

    def __init__(self, args: WavefrontArguments):
        present = [tensor for tensor in args.tensors() if tensor is not None]
        wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in present) else torch.float32
        u, delta, self.A, B, C, self.D, bias = (None if t is None else t.to(wide) for t in args.tensors())
        _, self.height, self.width, _ = args.u.shape
        device = args.u.device
        row = torch.arange(self.height, device=device)
        column = torch.arange(self.height + self.width - 1, device=device)[:, None] - row
        exists = (column >= 0) & (column < self.width)
        place = row * self.width + column
        # The position of each row of each diagonal, -1 beside the grid.
        self.token = torch.where(exists, self.height * self.width - 1 - place if args.reverse else place, -1)
        self.reverse = args.reverse
        interior = (row > 0) & (column > 0)
        left = torch.where(interior, 0.5, (row == 0).to(wide)).to(wide)
        # How much each way into a position counts, (diagonals, rows, 2); nothing does beside the grid.
        self.weight = torch.stack([1 - left, left], -1) * exists[..., None]

        self.u, delta, self.B, self.C = (self.by_diagonals(rows) for rows in (u, delta, B, C))
        self.delta = softplus(delta if bias is None else delta + bias)
        self.input = self.weight[..., None] * self.delta * self.u[:, :, :, None]  # what B multiplies

    def initial_state(self) -> Tensor:
        batch, _, rows, channels = self.u.shape
        return self.u.new_zeros(batch, rows, channels, self.A.shape[2])

    def decay(self, delta: Tensor, weight: Tensor) -> Tensor:
        """(batch, rows, 2, channels), and (rows, 2): what the states above and on the left are multiplied by."""
        return weight[..., None, None] * torch.exp(delta[..., None] * self.A)

    # Reshaped, and not flattened, which torch cannot vectorize over many gradients.

    def by_diagonals(self, rows: Tensor) -> Tensor:
        """(batch, height, width, ...) to (batch, diagonals, rows, ...)."""
        batch, inner, tokens = rows.shape[0], rows.shape[3:], self.height * self.width
        rows = F.pad(rows.reshape(batch, tokens, inner.numel()), (0, 0, 0, 1))
        place = torch.where(self.token < 0, tokens, self.token).flatten()
        return rows.index_select(1, place).reshape(batch, *self.token.shape, *inner)

    def back(self, rows: Tensor) -> Tensor:
        """(batch, diagonals, rows, ...) to (batch, height, width, ...)."""
        i, j = (torch.arange(size, device=rows.device) for size in (self.height, self.width))
        place = ((i[:, None] + j) * self.height + i[:, None]).flatten()
        batch, inner = rows.shape[0], rows.shape[3:]
        rows = rows.reshape(batch, self.token.numel(), inner.numel())
        rows = rows.index_select(1, place.flip(0) if self.reverse else place)
        return rows.reshape(batch, self.height, self.width, *inner)


BACKEND = reference_backend(scan, scan_backward)
