"""The linear layer of blocks."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.nn.reading import ReadsParameters
from vssm.ops import CAST, Form


@register_notrace_module
class Linear(nn.Linear, ReadsParameters):
    """nn.Linear that shares the cast of its parameters under autocast with the other layers of its block.

    >>> import torch
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     Linear(4, 3)(torch.randn(2, 4)).dtype
    torch.bfloat16
    """

    def to_read(self, on_gpu: bool) -> tuple[list[Tensor], list[Form]]:
        return parameters_to_cast(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.read(x))


def parameters_to_cast(layer: nn.Module) -> tuple[list[Tensor], list[Form]]:
    """Weight, and bias where there is one."""
    if layer.bias is None:
        return [layer.weight], [CAST]
    return [layer.weight, layer.bias], [CAST, CAST]
