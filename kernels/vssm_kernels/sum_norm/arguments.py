"""The arguments of the norm of summed directions, checked once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class NormArguments(NamedTuple):
    """What every backend receives; shapes as in `sum_norm`."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    center: bool
    dtype: torch.dtype
    merge: bool

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The differentiable ones."""
        return self.x, self.weight, self.bias

    @property
    def device(self) -> torch.device:
        return self.x.device


def check_shapes(args: NormArguments) -> None:
    """Raise with got, expected and what to do, for anything that the backends could not read."""
    x, weight, bias = args.x, args.weight, args.bias
    if x.dim() < 1 + args.merge or not x.is_floating_point():
        expected = "(..., directions, channels)" if args.merge else "(..., channels)"
        raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}; expected floats {expected}")
    channels = x.shape[-1:]
    if weight is not None and weight.shape != channels:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; expected {tuple(channels)}, the channels of x")
    if bias is not None and bias.shape != channels:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; expected {tuple(channels)}, the channels of x")
    if not args.eps > 0:
        raise ValueError(f"eps is {args.eps}; expected a positive number, as rows of zeros are divided by its root")
