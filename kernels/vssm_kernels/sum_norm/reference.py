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
    if args.groups > 1:
        parts = args._replace(x=rows.unflatten(-1, (args.groups, -1)), weight=None, bias=None, merge=False, groups=1)
        normed = norm(parts._replace(dtype=wide))[0].flatten(-2)
        normed = normed if weight is None else normed * weight
    elif args.center:
        return F.layer_norm(rows, channels, weight, bias, args.eps).to(args.dtype), None
    else:
        normed = F.rms_norm(rows, channels, weight, args.eps)
    return (normed if bias is None else normed + bias).to(args.dtype), None


def norm_backward(args: NormArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of x, of one direction where it has any, and of weight and bias.

    With n the normed row (of a group of channels), g the gradient times the weight and s the factor that normed it:

        dx = s (g - n mean(g n) - mean(g)),  the last term for layer norms alone
    """
    wide = torch.promote_types(args.x.dtype, torch.float32)
    if args.merge:
        gradient = gradient.unsqueeze(-2)
    # Not unflatten and flatten, which torch cannot vectorize over many gradients.
    x, gradient = (tensor.to(wide).reshape(*tensor.shape[:-1], args.groups, -1) for tensor in (args.x, gradient))
    if args.center:
        x = x - x.mean(-1, keepdim=True)
    factor = torch.rsqrt(x.square().mean(-1, keepdim=True) + args.eps)
    normed = x * factor
    dnormed = gradient if args.weight is None else gradient * args.weight.to(wide).view(args.groups, -1)
    dx = dnormed - normed * (dnormed * normed).mean(-1, keepdim=True)
    if args.center:
        dx = dx - dnormed.mean(-1, keepdim=True)
    rows = tuple(range(x.dim() - 2))
    dweight = None if args.weight is None else (gradient * normed).sum(rows).reshape(-1).to(args.weight.dtype)
    dbias = None if args.bias is None else gradient.sum(rows).reshape(-1).to(args.bias.dtype)
    return (dx * factor).reshape(args.x.shape).to(args.x.dtype), dweight, dbias


BACKEND = reference_backend(norm, norm_backward)
