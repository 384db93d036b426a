"""What the gate's kernels for CPU and GPU share: how torch differentiates them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vssm_kernels.dispatch import needs_gradient
from vssm_kernels.sum_gate.reference import GateArguments


class Kernels(NamedTuple):
    """A backend's passes.

    forward(args, save) returns the output, and with `save`, where there is a gate, the sum that it gates.
    backward(gradient, summed, z, scale) returns the gradients of the sum and of z.
    """

    forward: Callable[[GateArguments, bool], tuple[Tensor, Tensor | None]]
    backward: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def differentiable(kernels: Kernels, args: GateArguments) -> Tensor:
    """(batch, tokens, channels), in y's dtype; the sum, smaller than y, is kept where a gradient may be asked for."""
    if needs_gradient(args.y, args.z):
        return SumGate.apply(kernels, *args)
    return kernels.forward(args, False)[0]


class SumGate(torch.autograd.Function):
    """Every direction receives the gradient of the sum, which lies in memory once."""

    @staticmethod
    def forward(ctx, kernels: Kernels, y: Tensor, z: Tensor | None, scale: float) -> Tensor:
        out, summed = kernels.forward(GateArguments(y, z, scale), True)
        ctx.kernels, ctx.scale, ctx.directions = kernels, scale, y.shape[2]
        ctx.save_for_backward(*(() if z is None else (summed, z)))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor, Tensor | None, None]:
        saved = ctx.saved_tensors  # once: under activation checkpointing a second look would recompute
        if saved:
            dsum, dz = ctx.kernels.backward(gradient, *saved, ctx.scale)
        else:
            dsum, dz = gradient if ctx.scale == 1.0 else gradient * ctx.scale, None
        return None, dsum.unsqueeze(2).expand(-1, -1, ctx.directions, -1), dz, None
