"""The linear layer of blocks."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.nn.reading import ReadsParameters
from vssm.ops import CAST, Form

WEIGHT_AND_BIAS = {"weight": CAST, "bias": CAST}


@register_notrace_module
class Linear(nn.Linear, ReadsParameters):
    """nn.Linear that shares the cast of its parameters under autocast with the other layers of its block.

    >>> import torch
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     Linear(4, 3)(torch.randn(2, 4)).dtype
    torch.bfloat16
    """

    def to_read(self, on_gpu: bool) -> dict[str, Form]:
        return WEIGHT_AND_BIAS

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.read(x))
