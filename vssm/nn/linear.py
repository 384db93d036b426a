"""The linear layers of blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.nn.reading import ReadsParameters
from vssm.ops import CAST, Form, Layout, directed_linear

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

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)


@register_notrace_module
class GroupLinear(ReadsParameters):
    """A linear layer without bias for each group of channels.

    On a GPU one product with a block-diagonal weight, whose zeros cost less than narrow products; elsewhere a product
    for each group.

    Args:
        groups: of channels.
        inputs, outputs: channels of each group.
        halves: the second halves of all groups' outputs come first, then all first halves.

    >>> GroupLinear(4, 2, 6, halves=True)(torch.randn(3, 5, 8)).shape
    torch.Size([3, 5, 24])
    """

    def __init__(
        self,
        groups: int,
        inputs: int,
        outputs: int,
        halves: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.groups, self.inputs, self.outputs, self.halves = groups, inputs, outputs, halves
        self.weight = nn.Parameter(torch.empty(groups, outputs, inputs, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        nn.init.uniform_(self.weight, -(inputs**-0.5), inputs**-0.5)  # as nn.Linear

    def to_read(self, on_gpu: bool) -> dict[str, Form]:
        last = self.outputs // 2 if self.halves else 0
        return {"weight": Form(Layout.SIDE_BY_SIDE, last) if on_gpu else CAST, "bias": CAST}

    def forward(self, x: Tensor) -> Tensor:
        """(..., groups * inputs) in, (..., groups * outputs) out."""
        weight, _ = self.read(x)
        if weight.dim() == 2:
            return F.linear(x, weight)
        products = directed_linear(x.reshape(1, -1, self.groups, self.inputs), weight)
        if self.halves:  # as groups of their own
            products = torch.cat(products.chunk(2, -1)[::-1], 2)
        return products.reshape(*x.shape[:-1], self.groups * self.outputs)

    def extra_repr(self) -> str:
        return f"groups={self.groups}, inputs={self.inputs}, outputs={self.outputs}, halves={self.halves}"
