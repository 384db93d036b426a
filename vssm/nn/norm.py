"""Normalisation of a float32 residual stream inside models of any dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StreamRMSNorm(nn.RMSNorm):
    """Root-mean-square norm computed in float32 at least, returned in the dtype of its weight.

    Models such as Vim keep the residual stream in float32 when their weights are bfloat16 or float16.

    >>> norm = StreamRMSNorm(8, eps=1e-5, dtype=torch.bfloat16)
    >>> norm(torch.randn(2, 3, 8)).dtype
    torch.bfloat16
    """

    def forward(self, stream: Tensor) -> Tensor:
        stream = stream.to(torch.promote_types(stream.dtype, torch.float32))
        return F.rms_norm(stream, self.normalized_shape, self.weight.to(stream.dtype), self.eps).to(self.weight.dtype)
