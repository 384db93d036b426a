"""Float16 without infinities of our own making."""

from __future__ import annotations

import torch
from torch import Tensor


def saturate(values: Tensor, dtype: torch.dtype) -> Tensor:
    """`values` in `dtype`, where finite numbers beyond the largest of float16 become that.

    A scan multiplies its input with what it selects from that input, so its outputs grow faster in a training than
    anything else does. Beyond 65504 float16 has only infinity, which the next norm turns into NaN, and the training is
    lost; the largest number, normed, is what an even larger one would have become. Infinities and NaN that come in go
    out: they are not hidden.

    >>> saturate(torch.tensor([1.0, -1e6, float("inf")]), torch.float16).tolist()
    [1.0, -65504.0, inf]
    """
    if dtype != torch.float16 or values.dtype == dtype:
        return values.to(dtype)
    largest = torch.finfo(dtype).max
    return torch.where(values.isfinite(), values.clamp(-largest, largest), values).to(dtype)
