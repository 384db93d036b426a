"""The gate in plain torch: what the kernel must equal, and what compilers fuse by themselves."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.dispatch import Backend
from vssm_kernels.saturation import saturate


class GateArguments(NamedTuple):
    """What every backend receives; shapes as in `sum_gate`."""

    y: Tensor
    z: Tensor | None
    scale: float

    @property
    def device(self) -> torch.device:
        return self.y.device


def gate(args: GateArguments) -> Tensor:
    """(batch, tokens, channels), in y's dtype."""
    y, z, scale = args
    wide = torch.promote_types(y.dtype, torch.float32)
    total = y.sum(2, dtype=wide)
    if z is not None:
        total = total * F.silu(z.to(wide))
    return saturate(total if scale == 1.0 else total * scale, y.dtype)


BACKEND = Backend("reference", gate, None, why_not=lambda args: None)
