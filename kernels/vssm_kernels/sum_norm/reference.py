"""The norm of summed directions in plain torch: the measure of its kernels, and what compilers fuse by themselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.dispatch import reference_backend
from vssm_kernels.sum_norm.arguments import NormArguments


def norm(args: NormArguments, save: bool = False) -> tuple[Tensor, None]:
    """(..., channels), in args.dtype."""
    x = args.summed().squeeze(-2) if args.merge else args.x
    wide = torch.promote_types(x.dtype, torch.float32)
    rows, channels = x.to(wide), x.shape[-1:] if args.weight is None else args.weight.shape
    weight, bias = (None if tensor is None else tensor.to(wide) for tensor in (args.weight, args.bias))
    if args.center:
        return F.layer_norm(rows, channels, weight, bias, args.eps).to(args.dtype), None
    normed = F.rms_norm(rows, channels, weight, args.eps)
    return (normed if bias is None else normed + bias).to(args.dtype), None


def norm_backward(args: NormArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of x, of one direction where it has any, and of weight and bias.

    With n the normed row, g the gradient times the weight and s the factor that normed the row:

        dx = s (g - n mean(g n) - mean(g)),  the last term for layer norms alone
    """
    wide = torch.promote_types(args.x.dtype, torch.float32)
    x, gradient = args.x.to(wide), gradient.to(wide)
    if args.merge:
        gradient = gradient.unsqueeze(-2)
    if args.center:
        x = x - x.mean(-1, keepdim=True)
    factor = torch.rsqrt(x.square().mean(-1, keepdim=True) + args.eps)
    normed = x * factor
    dnormed = gradient if args.weight is None else gradient * args.weight.to(wide)
    dx = dnormed - normed * (dnormed * normed).mean(-1, keepdim=True)
    if args.center:
        dx = dx - dnormed.mean(-1, keepdim=True)
    rows = tuple(range(x.dim() - 1))
    dweight = None if args.weight is None else (gradient * normed).sum(rows).to(args.weight.dtype)
    dbias = None if args.bias is None else gradient.sum(rows).to(args.bias.dtype)
    return (dx * factor).to(args.x.dtype), dweight, dbias


BACKEND = reference_backend(norm, norm_backward)
