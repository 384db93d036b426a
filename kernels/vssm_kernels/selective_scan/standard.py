"""The selective scan in standard operations, in two forms for two kinds of runtimes.

For ONNX a loop over the steps is one operation (looped.py). TorchScript and exported programs are run by torch, which
takes longer to start an operation than a step takes, and traces have no loops. For these the steps are cut into about
as many chunks as each has steps, and all chunks are walked at once, twice: from a state of zero, for what a chunk adds
to the state behind it, and from the states that follow from this, for the outputs. These are 2 sqrt(steps) steps.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.saturation import saturate
from vssm_kernels.selective_scan import looped
from vssm_kernels.selective_scan.arguments import ScanArguments
from vssm_kernels.standard import gathered, scattered, visits


def scan(args: ScanArguments) -> Tensor:
    """(batch, tokens, directions, channels) outputs, or states with C=None."""
    if torch.onnx.is_in_onnx_export() and not torch.jit.is_tracing():
        return saturate(looped.scan(args), args.output_dtype)
    y = scattered(_chunked(args).flatten(3), args.order, args.tokens)
    return saturate(y if args.C is not None else y.unflatten(3, (args.channels, args.state)), args.output_dtype)


class _Rows:
    """Inputs in the order of each direction's steps: (batch, ..., directions, channels or state)."""

    def __init__(self, args: ScanArguments, token: Tensor, empty: bool):
        """The token of each step, (..., directions), -1 for none, and whether there may be none."""
        present = [tensor for tensor in args.tensors() if tensor is not None]
        wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in present) else torch.float32
        # Detached: no gradient is asked for, and torch would make a graph of the loop's.
        u, delta, A, B, C, D, bias, weight = (
            None if tensor is None else tensor.detach().to(wide) for tensor in args.tensors()
        )
        u, delta, B, C = (t if t is None or t.dim() == 3 else t.transpose(1, 2) for t in (u, delta, B, C))
        if weight is not None:
            delta = delta @ weight.transpose(1, 2)
        self.u, delta, self.B, self.C = (None if t is None else gathered(t, token, empty) for t in (u, delta, B, C))
        self.delta = F.softplus(delta if bias is None else delta + bias)
        self.input = self.delta * self.u
        self.A, self.D = A.transpose(1, 2).contiguous(), D

    def decay(self, delta: Tensor) -> Tensor:
        """(..., directions, channels) to (..., directions, state, channels)."""
        return torch.exp(delta.unsqueeze(-2) * self.A)

    def output(self, y: Tensor) -> Tensor:
        return y if self.D is None else y + self.D * self.u


def _added(row: Tensor, B: Tensor) -> Tensor:
    """What a step adds to the state: (..., directions, state, channels)."""
    return row.unsqueeze(-2) * B.unsqueeze(-1)


def _read(state: Tensor, C: Tensor | None) -> Tensor:
    """What a step puts out: (..., directions, channels), or with C=None the state, its channels before its numbers."""
    if C is None:
        return state.transpose(-1, -2).clone()
    return state.squeeze(-2) * C if state.shape[-2] == 1 else (C.unsqueeze(-2) @ state).squeeze(-2)


def _has_empty_steps(args: ScanArguments) -> bool:
    order = args.order
    return order is not None and not (order.writes_each_row_once and order.steps == order.tokens)


def _kept(args: ScanArguments, steps: int) -> Tensor | None:
    """0 where the state starts anew, else 1."""
    if not args.segment:
        return None
    return (torch.arange(steps, device=args.device) % args.segment != 0).to(args.A.dtype)


def _chunked(args: ScanArguments) -> Tensor:
    steps = args.steps
    chunks = max(1, math.isqrt(steps))
    length = -(-steps // chunks)
    token = visits(args.order, steps, args.directions, args.device)
    token = F.pad(token, (0, 0, 0, chunks * length - steps), value=-1)
    empty = chunks * length > steps or _has_empty_steps(args)
    rows = _Rows(args, token.unflatten(0, (chunks, length)), empty)  # (batch, chunks, length, directions, ...)
    kept = _kept(args, chunks * length)

    decays = [rows.decay(delta) for delta in rows.delta.unbind(2)]
    whole = rows.decay(rows.delta.sum(2))  # of a chunk
    if kept is not None:
        kept = kept.view(chunks, length, 1, 1, 1)
        decays = [decay * kept[:, step] for step, decay in enumerate(decays)]
        whole = whole * kept.prod(1)
    added = [_added(row, B) for row, B in zip(rows.input.unbind(2), rows.B.unbind(2), strict=True)]

    state = torch.zeros_like(whole)
    for decay, add in zip(decays, added, strict=True):
        state = decay * state + add
    before = [torch.zeros_like(state[:, 0])]
    for chunk in range(chunks - 1):
        before.append(whole[:, chunk] * before[-1] + state[:, chunk])
    state, outputs = torch.stack(before, 1), []
    read = [None] * length if rows.C is None else rows.C.unbind(2)
    for decay, add, C in zip(decays, added, read, strict=True):
        state = decay * state + add
        outputs.append(_read(state, C))
    return rows.output(torch.stack(outputs, 2)).flatten(1, 2)[:, :steps]
