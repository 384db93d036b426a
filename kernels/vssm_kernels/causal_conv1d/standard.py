"""The causal convolution in standard operations: rows gathered along each direction, shifted, weighted and summed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.causal_conv1d.arguments import ConvArguments
from vssm_kernels.standard import gathered, scattered, visits


def conv(args: ConvArguments) -> Tensor:
    """(batch, tokens, directions, channels), in x's dtype."""
    x, weight, bias, order, silu = args
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = gathered(x.to(wide), visits(order, order.steps, order.directions, x.device))
    rows = F.pad(rows, (0, 0, 0, 0, args.width - 1, 0))
    taps = weight.to(wide).unbind(2)
    sums = sum(tap * rows[:, j : j + order.steps] for j, tap in enumerate(taps))
    if bias is not None:
        sums = sums + bias.to(wide)
    return scattered(F.silu(sums) if silu else sums, order, x.shape[1]).to(x.dtype)
