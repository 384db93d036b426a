"""The step sizes of state-space models, as they start."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# They are drawn log-uniformly from this range (Mamba, arXiv 2312.00752, section 3.6).
STEP_MIN, STEP_MAX, STEP_FLOOR = 1e-3, 1e-1, 1e-4


@torch.no_grad()
def draw_step_bias(bias: Tensor) -> None:
    """Fill a bias that softplus turns into step sizes: these come from 0.001 to 0.1, log-uniformly.

    >>> bias = torch.empty(1000)
    >>> draw_step_bias(bias)
    >>> steps = torch.nn.functional.softplus(bias)
    >>> bool(((steps > 9e-4) & (steps < 0.11)).all())
    True
    """
    if bias.is_meta:
        return
    step = torch.rand_like(bias, dtype=torch.float32)
    step = torch.exp(math.log(STEP_MIN) + step * (math.log(STEP_MAX) - math.log(STEP_MIN))).clamp(min=STEP_FLOOR)
    bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
