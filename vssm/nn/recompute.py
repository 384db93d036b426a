"""Less memory in training: what is quick to make is made again in the backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers import Mlp
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), of which the inputs alone are kept for the backward.

    Activation checkpointing of torch, which recomputes no further than to the last tensor that is needed: where the
    function ends with a linear layer, its input is made again and the layer itself is not. Compilers choose by
    themselves what to keep.

    >>> x = torch.randn(3, requires_grad=True)
    >>> recomputed(torch.sin, x).sum().backward()
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


class LeanMlp(Mlp):
    """timm's MLP with GELU; the activation's output, the largest tensor of a block, is not kept.

    >>> LeanMlp(4, 16)(torch.randn(2, 3, 4)).shape
    torch.Size([2, 3, 4])
    """

    def __init__(
        self, dim: int, hidden: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ):
        super().__init__(dim, hidden, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(lambda hidden: self.fc2(self.act(hidden)), self.fc1(x))
