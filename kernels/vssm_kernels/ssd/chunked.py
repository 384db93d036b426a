"""State-space duality out of matrix products, on any device: the steps are cut into chunks.

With a_t the sum of delta A from a chunk's first step to t, and h the state before the chunk, the recurrence is

    y_t = exp(a_t) h C_t + sum over s <= t of exp(a_t - a_s) (C_t . B_s) delta_s u_s

the second term being attention without softmax, whose scores decay (Mamba-2, arXiv 2405.21060, section 6). What chunks
add to the state is a product too, and so are the states before them: of one triangular matrix of decays between chunks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.saturation import saturate
from vssm_kernels.ssd.arguments import SSDArguments
from vssm_kernels.standard import gathered, scattered, softplus, visits

_LENGTH = 64  # of chunks, at least: the longest sequences have as many chunks as each has steps


def duality(args: SSDArguments, save: bool = False) -> tuple[Tensor, None]:
    """(batch, tokens, directions, heads, channels), or with merge the sum over the directions, in u's dtype."""
    chunks = _Chunks(args)
    y = _weighted(chunks.weights, chunks.added) + chunks.read_at_start()
    if args.D is not None:
        y = y + chunks.per_head(args.D)[..., None] * chunks.u
    y = chunks.write(y, args.shift)
    return saturate((y.sum(2) if args.merge else y).view(args.output_shape), args.u.dtype), None


def duality_backward(args: SSDArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of `args.tensors()`, None where a tensor is, each in its tensor's dtype; the forward runs again."""
    chunks = _Chunks(args)
    dy = chunks.rows(args.per_direction(gradient).flatten(3), (args.channels,), args.shift)

    dstarts = chunks.C.mT @ (chunks.since_start[..., None] * dy).flatten(-2)
    # The gradients of the states before chunks through all that follows, and of those behind them.
    through = _between(chunks.kept.mT, dstarts.unflatten(-1, dy.shape[-2:]))
    dends = torch.cat([through[:, :, 1:], torch.zeros_like(through[:, :, :1])], 2)
    to_end = chunks.to_end[..., None] * (chunks.B @ dends.flatten(-2)).view_as(dy)
    dadded = _weighted(chunks.weights.mT, dy) + to_end

    dweights = _heads_first(dy) @ _heads_first(chunks.added).mT
    dscores = (dweights * chunks.decay).sum(-3)
    dB = dscores.mT @ chunks.C + (chunks.to_end[..., None] * chunks.added).flatten(-2) @ dends.flatten(-2).mT
    dC = dscores @ chunks.B + (chunks.since_start[..., None] * dy).flatten(-2) @ chunks.starts.flatten(-2).mT

    # The gradient of delta A at a step: all that passes it, from an earlier step or the start to a later one or an end.
    # Added up as such: differences of sums that begin at the start would lose the digits of what has decayed.
    weighed = dweights * chunks.weights
    passing = (weighed.new_ones(weighed.shape[-2:]).triu() @ weighed).tril(-1).sum(-1).mT
    given = F.pad((to_end * chunks.added).sum(-1)[..., :-1, :], (0, 0, 1, 0)).cumsum(-2)
    read = (dy * chunks.read_at_start()).sum(-1).flip(-2).cumsum(-2).flip(-2)
    through_all = chunks.since_start[..., -1:, :] * (dends * chunks.starts).sum((-3, -1)).unsqueeze(-2)
    drate = passing + given + read + through_all

    slope = -torch.expm1(-chunks.delta)  # of softplus, in its own value
    ddelta = ((dadded * chunks.u).sum(-1) + chunks.A * drate) * slope
    du = chunks.delta[..., None] * dadded
    if args.D is not None:
        du = du + chunks.per_head(args.D)[..., None] * dy
    return args.cast(
        chunks.write(du).view(args.row_shape),
        chunks.write(ddelta),
        (chunks.delta * drate).sum((0, 2, 4)).flatten(1),
        chunks.write(dB).view(args.B.shape),
        chunks.write(dC).view(args.C.shape),
        (dy * chunks.u).sum((0, 2, 4, 6)).flatten(1),
        ddelta.sum((0, 2, 4)).flatten(1),
        through[:, :, 0].permute(0, 1, 2, 4, 5, 3).flatten(2, 3),
    )


class _Chunks:
    """Widened inputs along the steps, and what they make of states.

    Rows are (batch, directions, chunks, groups, steps of a chunk, heads of a group[, channels]), those of B and C have
    `state` in place of the heads. States are (batch, directions, chunks, groups, state, heads of a group, channels).
    """

    def __init__(self, args: SSDArguments):
        self.args, self.length = args, max(_LENGTH, math.isqrt(args.steps))
        self.count = -(-args.steps // self.length)
        token = visits(args.order, args.steps, args.directions, args.device)
        self.token = F.pad(token, (0, 0, 0, self.count * self.length - args.steps), value=-1)
        self.u = self.rows(args.u.flatten(2 if args.shared_input else 3), (args.channels,))
        self.B, self.C = (self.rows(each.flatten(3), ()) for each in (args.B, args.C))
        delta = self.rows(args.delta, ())
        self.delta = softplus(delta if args.delta_bias is None else delta + self.per_head(args.delta_bias))
        self.A = self.per_head(args.A)
        self.added = self.delta[..., None] * self.u

        rates = self.delta * self.A
        a = rates.cumsum(-2)
        self.decay = _decays(rates.transpose(-1, -2))  # OpenVINO has no mT
        self.since_start, self.to_end = torch.exp(a), self.decay[..., -1, :].transpose(-1, -2)
        self.weights = (self.C @ self.B.transpose(-1, -2)).unsqueeze(-3) * self.decay

        self.kept = decays_between(a[..., -1, :].permute(0, 1, 3, 4, 2))
        ends = (self.B.transpose(-1, -2) @ (self.to_end[..., None] * self.added).flatten(-2)).unflatten(
            -1, self.u.shape[-2:]
        )
        if args.initial is None:
            first = torch.zeros_like(ends[:, :, :1])
        else:
            first = args.initial.to(ends.dtype).unflatten(2, (args.groups, -1)).permute(0, 1, 2, 5, 3, 4).unsqueeze(2)
        self.starts = _between(self.kept, torch.cat([first, ends[:, :, :-1]], 2))

    def read_at_start(self) -> Tensor:
        """What the states before the chunks give to the outputs."""
        return self.since_start[..., None] * (self.C @ self.starts.flatten(-2)).view_as(self.u)

    def per_head(self, parameter: Tensor) -> Tensor:
        """(directions, heads) as rows."""
        return parameter.to(self.args.wide_dtype).view(1, self.args.directions, 1, self.args.groups, 1, -1)

    def rows(self, values: Tensor, inner: tuple[int, ...], shift: bool = False) -> Tensor:
        """What each step reads, zeros where there is no token; with shift, what the next one would.

        Args:
            values: (batch, tokens, features), read by all directions, or (batch, tokens, directions, features).
            inner: the sizes that follow the heads of a group, or the state, in the features.
        """
        token = F.pad(self.token[1:], (0, 0, 0, 1), value=-1) if shift else self.token
        rows = gathered((values if values.dim() == 3 else values.transpose(1, 2)).to(self.args.wide_dtype), token)
        sizes = self.count, self.length, self.args.directions, self.args.groups
        of_group = values.shape[-1] // math.prod((self.args.groups, *inner))
        rows = rows.view(values.shape[0], *sizes, of_group, *inner)
        return rows.permute(0, 3, 1, 4, 2, *range(5, rows.dim()))

    def write(self, rows: Tensor, shift: bool = False) -> Tensor:
        """The way back, (batch, tokens, directions, features), with the sum for tokens that are visited twice."""
        rows = rows.permute(0, 2, 4, 1, 3, *range(5, rows.dim())).flatten(4).flatten(1, 2)
        rows = rows[:, : self.args.steps]
        if shift:
            rows = F.pad(rows[:, :-1], (0, 0, 0, 0, 1, 0))
        return scattered(rows, self.args.order, self.args.tokens)


def decays_between(total: Tensor) -> Tensor:
    """From the start of each chunk to that of each later one: (..., chunks) to (..., chunks, chunks).

    Args:
        total: the logarithm of each chunk's decay.
    """
    return _decays(F.pad(total[..., :-1], (1, 0)))


def _decays(rates: Tensor) -> Tensor:
    """exp of the sum of all rates behind a column's step up to a row's: (..., steps) to (..., steps, steps), zero where
    the row's is earlier. Sums begin at their first step: differences of sums from the start would lose digits."""
    sums = rates[..., None].expand(*rates.shape, rates.shape[-1]).tril(-1).cumsum(-2)
    earlier = torch.ones(sums.shape[-2:], dtype=torch.bool, device=sums.device).triu(1)
    return torch.exp(sums.masked_fill(earlier, -math.inf))


def _heads_first(rows: Tensor) -> Tensor:
    """(..., steps, heads, channels) -> (..., heads, steps, channels)."""
    return rows.transpose(-3, -2)


def _weighted(weights: Tensor, rows: Tensor) -> Tensor:
    return _heads_first(weights @ _heads_first(rows))


def _between(weights: Tensor, states: Tensor) -> Tensor:
    """A product over the chunks, with weights (batch, directions, groups, heads of a group, chunks, chunks)."""
    return torch.einsum("bkgrij,bkjgnrp->bkignrp", weights, states)
