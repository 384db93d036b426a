"""The norm of summed directions under compilers: layer norms on a GPU are the Triton kernels, as operators of torch.

Inductor makes two passes over memory of a layer norm, where our kernel makes one: with plain layer norms, the kernels
of `vmamba_tiny` took longer compiled than in eager mode. A root-mean-square norm it makes in one pass, and the addition
before it too; that, and all norms on a CPU, are plain torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vssm_kernels.dispatch import needs_gradient, operator
from vssm_kernels.gpu import on_their_gpu, why_no_triton
from vssm_kernels.sum_norm import reference, triton_fused
from vssm_kernels.sum_norm.arguments import NormArguments
from vssm_kernels.sum_norm.autograd import gradients, keep


def norm(args: NormArguments) -> Tensor:
    """(..., channels), in args.dtype."""
    if not (args.center and args.x.is_cuda) or why_no_triton(*args.tensors()) is not None:
        return reference.norm(args)
    return _norm_by_operator(args, needs_gradient(*args.tensors()))


def _norm_by_operator(args: NormArguments, save: bool) -> Tensor:
    x, merge = args.x, args.merge and args.x.shape[-2] > 1
    shape = (*x.shape[: -1 - args.merge], x.shape[-1])
    if save:
        # As rows: inductor takes four dimensions for (batch, channels, height, width), and copies what is kept for the
        # backward to its own idea of channels-last.
        x = x.reshape(-1, *x.shape[-2:]) if merge else x.reshape(-1, x.shape[-1])
    elif not merge:
        # As it is: of a sum that is not kept inductor writes out the view, and adds up the sum again for the next.
        x = x.reshape(shape)
    weight, bias = (None if tensor is None else tensor.contiguous() for tensor in (args.weight, args.bias))
    return _norm(x, weight, bias, args.eps, args.center, args.dtype, merge, save)[0].view(shape)


@operator("vssm::sum_norm")
def _norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    center: bool,
    dtype: torch.dtype,
    merge: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """The output, and what of the sums over directions is to be saved: these, or nothing."""
    args = NormArguments(x, weight, bias, eps, center, dtype, merge)
    y, rows = on_their_gpu(triton_fused.forward)(args, save)
    return y, rows if merge and save else y.new_empty(0)


@torch.library.register_fake("vssm::sum_norm")
def _(x, weight, bias, eps, center, dtype, merge, save):
    y = x.new_empty((*x.shape[:-2], x.shape[-1]) if merge else x.shape, dtype=dtype)
    return y, y.new_empty(y.shape, dtype=x.dtype) if merge and save else y.new_empty(0)


@operator("vssm::sum_norm_backward")
def _norm_backward(
    gradient: Tensor, rows: Tensor, weight: Tensor | None, eps: float, center: bool, has_bias: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of the rows that were normed, and of weight and bias, (1 or 2, channels) in float32."""
    return on_their_gpu(triton_fused.backward)(gradient, rows, weight, eps, center, has_bias)


@torch.library.register_fake("vssm::sum_norm_backward")
def _(gradient, rows, weight, eps, center, has_bias):
    dx = rows.new_empty(gradient.shape)
    return dx, rows.new_empty((1 + has_bias, rows.shape[-1]), dtype=torch.float32)


def _setup_context(ctx, inputs, output):
    args = NormArguments(*inputs[:-1])
    keep(ctx, args, output[1] if args.merge else args.x)


def _autograd_backward(ctx, gradient, _):
    return *gradients(ctx, _norm_backward, gradient), None


torch.library.register_autograd("vssm::sum_norm", _autograd_backward, setup_context=_setup_context)
