"""The norm of summed directions in plain torch, differentiated by autograd and fused by compilers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.dispatch import Backend
from vssm_kernels.saturation import saturate
from vssm_kernels.sum_norm.arguments import NormArguments


def norm(args: NormArguments) -> Tensor:
    """(..., channels), in args.dtype."""
    x = args.x
    wide = torch.promote_types(x.dtype, torch.float32)
    if args.merge:
        x = saturate(x.sum(-2, dtype=wide), x.dtype)
    rows, channels = x.to(wide), x.shape[-1:]
    weight, bias = (None if tensor is None else tensor.to(wide) for tensor in (args.weight, args.bias))
    if args.center:
        return F.layer_norm(rows, channels, weight, bias, args.eps).to(args.dtype)
    normed = F.rms_norm(rows, channels, weight, args.eps)
    return (normed if bias is None else normed + bias).to(args.dtype)


BACKEND = Backend("reference", norm, None, why_not=lambda args: None)
