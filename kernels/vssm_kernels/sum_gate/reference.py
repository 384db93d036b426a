"""The gate in plain torch: the measure of its kernels, and what compilers fuse by themselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.dispatch import reference_backend
from vssm_kernels.saturation import saturate
from vssm_kernels.sum_gate.arguments import GateArguments


def gate(args: GateArguments, save: bool = False) -> tuple[Tensor, None]:
    """(batch, tokens, channels), in y's dtype."""
    y, z, scale = args
    wide = torch.promote_types(y.dtype, torch.float32)
    total = y.sum(2, dtype=wide)
    if z is not None:
        total = total * F.silu(z.to(wide))
    return saturate(total if scale == 1.0 else total * scale, y.dtype), None


def gate_backward(args: GateArguments, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradients of the sum over the directions, (batch, tokens, 1, channels), and of z."""
    y, z, scale = args
    wide = torch.promote_types(gradient.dtype, torch.float32)
    gradient = gradient.to(wide) * scale
    if z is None:
        return gradient.unsqueeze(2), None
    total, gated = y.squeeze(2).to(wide), z.to(wide)
    sigmoid = torch.sigmoid(gated)
    silu = gated * sigmoid
    dz = gradient * total * (sigmoid + silu * (1 - sigmoid))
    return (gradient * silu).unsqueeze(2), dz.to(z.dtype)


BACKEND = reference_backend(gate, gate_backward)
