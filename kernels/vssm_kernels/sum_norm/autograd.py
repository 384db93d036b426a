"""What the norm's kernels for CPU and GPU share: how torch differentiates them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vssm_kernels.dispatch import needs_gradient
from vssm_kernels.sum_norm.arguments import NormArguments


class Kernels(NamedTuple):
    """A backend's passes.

    forward(args, save) returns the output, and with `save` the rows that were normed.
    backward(gradient, rows, weight, eps, center, has_bias) returns the gradients of the normed rows and, in float32,
    of weight and bias, (1 or 2, channels).
    """

    forward: Callable[[NormArguments, bool], tuple[Tensor, Tensor | None]]
    backward: Callable[[Tensor, Tensor, Tensor | None, float, bool, bool], tuple[Tensor, Tensor]]


def differentiable(kernels: Kernels, args: NormArguments) -> Tensor:
    """(..., channels), in args.dtype; rows are kept where a gradient may be asked for."""
    if needs_gradient(*args.tensors()):
        return _Norm.apply(kernels, *args)
    return kernels.forward(args, False)[0]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernels, *inputs):
        args = NormArguments(*inputs)
        y, rows = kernels.forward(args, True)
        keep(ctx, args, rows)
        ctx.kernels = kernels
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return None, *gradients(ctx, ctx.kernels.backward, gradient)


def keep(ctx: Any, args: NormArguments, rows: Tensor) -> None:
    """What the backward needs; `rows` are those that were normed."""
    ctx.save_for_backward(rows, args.weight)
    ctx.eps, ctx.center = args.eps, args.center
    ctx.merged_shape = args.x.shape if args.merge else None
    ctx.x_dtype, ctx.bias_dtype = args.x.dtype, None if args.bias is None else args.bias.dtype


def gradients(ctx: Any, backward: Callable[..., tuple[Tensor, Tensor]], gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Of what `NormArguments` names."""
    rows, weight = ctx.saved_tensors
    dx, shares = backward(gradient, rows, weight, ctx.eps, ctx.center, ctx.bias_dtype is not None)
    dx = dx.to(ctx.x_dtype)
    if ctx.merged_shape is not None:  # every direction counts the same in the sum
        dx = dx.unsqueeze(-2).expand(ctx.merged_shape)
    dweight = None if weight is None else shares[0].to(weight.dtype)
    dbias = None if ctx.bias_dtype is None else shares[1].to(ctx.bias_dtype)
    return dx, dweight, dbias, None, None, None, None
