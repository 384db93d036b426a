"""Functions that Triton kernels share."""

from __future__ import annotations

try:
    import triton
    import triton.language as tl
except ImportError:  # why_no_triton reports it
    triton = None

if triton is not None:

    @triton.jit
    def sigmoid(x):
        """1 / (1 + exp(-x)) as the square of a reciprocal root: fewer instructions than a division, same accuracy."""
        root = tl.rsqrt(1.0 + tl.exp2(x * -1.4426950408889634))
        return root * root

    @triton.jit
    def saturate(values, dtype: tl.constexpr):
        """As vssm_kernels.saturation.saturate."""
        if dtype == tl.float16:
            held = tl.minimum(tl.maximum(values, -65504.0), 65504.0)
            values = tl.where(tl.abs(values) < float("inf"), held, values)
        return values.to(dtype)
