"""Conversions around arithmetic in float32: to it, and back to float16, which clamps instead of overflowing."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 at least, which float64 is.

    >>> wide(torch.ones(1, dtype=torch.bfloat16)).dtype, wide(torch.ones(1, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def saturate(values: Tensor, dtype: torch.dtype) -> Tensor:
    """`values` in `dtype`; in float16, finite numbers are clamped to +-65504.

    A scan multiplies its input by numbers computed from that input, so in training its outputs grow faster than other
    activations. Overflow to infinity would become NaN in the next norm and end the training; a clamped number, normed,
    is close to what the exact one would give. Infinities and NaN in `values` are passed on.

    >>> saturate(torch.tensor([1.0, -1e6, float("inf")]), torch.float16).tolist()
    [1.0, -65504.0, inf]
    """
    if dtype != torch.float16 or values.dtype == dtype:
        return values.to(dtype)
    largest = torch.finfo(dtype).max
    return torch.where(values.isfinite(), values.clamp(-largest, largest), values).to(dtype)
