"""Gradients of parameters out of what each program of a kernel has summed: added up in a fixed order, in Triton."""

from __future__ import annotations

from vssm_kernels.gpu import Launcher, cdiv

try:
    import triton
    import triton.language as tl
except ImportError:  # why_no_triton reports it
    triton = None

_TILE = {"BLOCK": 32, "ROWS": 128, "num_warps": 8}


def shares_launcher(count: int, channels: int, columns: int) -> Launcher:
    """(shares, first, second) to sums over the `count` rows of shares, (count, columns) in float32.

    The first `channels` columns are those of the first gradient, the others those of the second; either may be None.
    """
    grid = (cdiv(columns, _TILE["BLOCK"]),)
    return Launcher(sum_shares_kernel, grid, count=count, CHANNELS=channels, COLUMNS=columns, **_TILE)


if triton is not None:

    @triton.jit(do_not_specialize=["count"])
    def sum_shares_kernel(
        shares, first, second, count, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr,
        BLOCK: tl.constexpr, ROWS: tl.constexpr,
    ):  # fmt: skip
        c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros((ROWS, BLOCK), tl.float32)
        for start in range(0, count, ROWS):
            row = start + tl.arange(0, ROWS)
            mask = (row < count)[:, None] & (c < COLUMNS)[None, :]
            total += tl.load(shares + row[:, None] * COLUMNS + c[None, :], mask=mask, other=0.0)
        sums = tl.sum(total, 0)
        if first is not None:
            tl.store(first + c, sums.to(first.dtype.element_ty), mask=c < CHANNELS)
        if second is not None:
            tl.store(second + c - CHANNELS, sums.to(second.dtype.element_ty), mask=(c >= CHANNELS) & (c < COLUMNS))
