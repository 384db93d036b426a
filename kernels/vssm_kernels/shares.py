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
    """(shares, first, second, third) to sums over the `count` rows of shares, (count, columns) in float32.

    The first `channels` columns are those of the first gradient, and so on; those of None are left.
    """
    grid = (cdiv(columns, _TILE["BLOCK"]),)
    return Launcher(sum_shares_kernel, grid, count=count, CHANNELS=channels, COLUMNS=columns, **_TILE)


if triton is not None:

    @triton.jit
    def store_part(out, c, sums, PART: tl.constexpr, CHANNELS: tl.constexpr):
        c -= PART * CHANNELS
        tl.store(out + c, sums.to(out.dtype.element_ty), mask=(c >= 0) & (c < CHANNELS))

    @triton.jit(do_not_specialize=["count"])
    def sum_shares_kernel(
        shares, first, second, third, count, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr,
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
            store_part(first, c, sums, 0, CHANNELS)
        if second is not None:
            store_part(second, c, sums, 1, CHANNELS)
        if third is not None:
            store_part(third, c, sums, 2, CHANNELS)
