"""The gate in plain torch: what the kernel must equal, and what compilers fuse by themselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sum_gate(y: Tensor, z: Tensor, scale: float) -> Tensor:
    wide = torch.promote_types(y.dtype, torch.float32)
    gated = y.sum(2, dtype=wide) * F.silu(z.to(wide))
    return (gated if scale == 1.0 else gated * scale).to(y.dtype)
