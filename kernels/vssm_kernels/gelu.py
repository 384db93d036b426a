"""GELU and its gradient in one pass, for a backward that computes an activation again instead of having saved it."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.dispatch import PLAIN_TENSORS, is_watched
from vssm_kernels.gpu import Launcher, cdiv, why_no_triton

try:
    import triton
    import triton.language as tl
except ImportError:  # why_no_triton reports it
    triton = None

_BLOCK = 2048  # numbers of a program


def gelu_again(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """GELU(x) = x Phi(x), arXiv 1606.08415, and the gradient of x given that of GELU(x), both in x's dtype.

    torch reads x twice for them and writes in two kernels. Arithmetic is float32 (float64 for float64 inputs).

    Args:
        x: of any shape.
        gradient: of the same shape.

    >>> value, dx = gelu_again(torch.zeros(2), torch.ones(2))
    >>> value.tolist(), dx.tolist()
    ([0.0, 0.0], [0.5, 0.5])
    """
    plain = type(x) in PLAIN_TENSORS and type(gradient) in PLAIN_TENSORS and not is_watched()
    if not (plain and x.is_cuda) or x.dtype == torch.float64 or why_no_triton(x) is not None:
        return F.gelu(x), torch.ops.aten.gelu_backward(gradient.to(x.dtype), x)
    x, gradient = x.contiguous(), gradient.contiguous()
    value, dx = torch.empty_like(x), torch.empty_like(x)
    alignment = (x.data_ptr() | gradient.data_ptr()) & 15
    _launcher(x.numel(), x.dtype, gradient.dtype, x.device, alignment)(x, gradient, value, dx)
    return value, dx


@functools.lru_cache(maxsize=1024)
def _launcher(size: int, dtype: torch.dtype, gradient: torch.dtype, device: torch.device, alignment: int) -> Launcher:
    return Launcher(gelu_kernel, (cdiv(size, _BLOCK),), size=size, BLOCK=_BLOCK, num_warps=8)


if triton is not None:

    @triton.jit
    def gelu_kernel(x, gradient, value, dx, size, BLOCK: tl.constexpr):
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = i < size
        given = tl.load(x + i, mask=mask, other=0.0).to(tl.float32)
        slope = tl.load(gradient + i, mask=mask, other=0.0).to(tl.float32)
        below = 0.5 * (1.0 + tl.erf(given * 0.7071067811865476))  # Phi, the normal distribution
        density = 0.3989422804014327 * tl.exp(-0.5 * given * given)
        tl.store(value + i, (given * below).to(value.dtype.element_ty), mask=mask)
        tl.store(dx + i, (slope * (below + given * density)).to(dx.dtype.element_ty), mask=mask)
