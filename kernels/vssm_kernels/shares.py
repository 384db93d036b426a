"""Gradients of parameters out of what each program of a kernel has summed: added up in a fixed order, in Triton.

And how kernels that sum such shares are cut: into tiles of whole rows, which programs take in a fixed pattern.
"""

from __future__ import annotations

from vssm_kernels.gpu import Launcher, cdiv

try:
    import triton
    import triton.language as tl
except ImportError:  # why_no_triton reports it
    triton = None

_TILE = {"BLOCK": 32, "ROWS": 128, "num_warps": 8}
ROWS_TILE = 2048  # elements of a tile of whole rows, which are padded to a power of two channels
PROGRAMS_MAX = 1024  # that share tiles, the same on every device


def tile_of_rows(channels: int) -> dict[str, int]:
    """What a kernel is told whose programs take tiles of whole rows."""
    block = 1 << (channels - 1).bit_length()
    rows = max(1, ROWS_TILE // block)
    return {"CHANNELS": channels, "BLOCK_C": block, "ROWS": rows, "num_warps": min(16, max(4, block // 512))}


def programs_of(tiles: int) -> tuple[int, int]:
    """Programs that share tiles, and how many each of them takes, one after the other."""
    turns = max(1, cdiv(tiles, PROGRAMS_MAX))
    return cdiv(tiles, turns), turns


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
