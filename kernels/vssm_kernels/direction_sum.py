"""Sums over the directions of (batch, tokens, directions, channels), and over blocks of channels, in Triton."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from vssm_kernels.buffers import packed
from vssm_kernels.gpu import Launcher, cdiv

try:
    import triton
    import triton.language as tl

    from vssm_kernels.triton_math import saturate
except ImportError:  # why_no_triton reports it
    triton = None

# The tile of one program: 8 channels a thread, which are 16 bytes in half precision.
TILE = {"ROWS": 8, "CHANNELS": 128, "num_warps": 4}

_SUM_BLOCK = 1024

if triton is not None:

    @triton.jit
    def tile(rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
        """This program's rows, as a column of 64-bit numbers, its channels, as a row, and which of them exist."""
        blocks = tl.cdiv(channels, CHANNELS)
        program = tl.program_id(0)
        row = (program // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        c = program % blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :]
        return row, c, (row < rows) & (c < channels)

    @triton.jit
    def direction_sum(y, row, c, mask, channels, DIRECTIONS: tl.constexpr):
        """The sum of a tile's rows over the directions, in float32."""
        y += row * (DIRECTIONS * channels) + c
        total = tl.load(y, mask=mask, other=0.0).to(tl.float32)
        for k in tl.static_range(1, DIRECTIONS):
            total += tl.load(y + k * channels, mask=mask, other=0.0).to(tl.float32)
        return total

    @triton.jit
    def sum_kernel(y, out, rows, channels, DIRECTIONS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
        row, c, mask = tile(rows, channels, ROWS, CHANNELS)
        total = direction_sum(y, row, c, mask, channels, DIRECTIONS)
        tl.store(out + row * channels + c, saturate(total, out.dtype.element_ty), mask=mask)

    @triton.jit
    def sum_blocks_kernel(blocks, out, size, count, BLOCK: tl.constexpr):
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = i < size
        total = tl.zeros((BLOCK,), tl.float32)
        for _ in range(count):
            total += tl.load(blocks + i, mask=mask, other=0.0)
            blocks += size
        tl.store(out + i, total.to(out.dtype.element_ty), mask=mask)


def even_rows(z: Tensor | None) -> Tensor | None:
    """z itself where all its rows are one stride apart, as in half of a projection; else a copy."""
    if z is None:
        return None
    batch_stride, token_stride, channel_stride = z.stride()
    even = channel_stride == 1 and batch_stride == z.shape[1] * token_stride
    return z if even else packed(z)


def tile_grid(rows: int, channels: int) -> tuple[int]:
    return (cdiv(rows, TILE["ROWS"]) * cdiv(channels, TILE["CHANNELS"]),)


def sum_directions(y: Tensor) -> Tensor:
    """Contiguous (batch, tokens, directions, channels) -> (batch, tokens, channels), in y's dtype, added in float32."""
    batch, tokens, directions, channels = y.shape
    if directions == 1:
        return y.squeeze(2)
    out = torch.empty((batch, tokens, channels), dtype=y.dtype, device=y.device)
    _sum_launcher(y.shape, y.dtype, y.device, y.data_ptr() & 15)(y, out)
    return out


@functools.lru_cache(maxsize=1024)
def _sum_launcher(shape: torch.Size, dtype: torch.dtype, device: torch.device, alignment: int) -> Launcher:
    batch, tokens, directions, channels = shape
    rows = batch * tokens
    return Launcher(sum_kernel, tile_grid(rows, channels), rows=rows, channels=channels, DIRECTIONS=directions, **TILE)


def sum_blocks(blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous (blocks, ...) float32, summed over the first dimension in a fixed order and rounded once."""
    shape = blocks.shape
    out = torch.empty(shape[1:], dtype=dtype, device=blocks.device)
    if out.numel():
        _block_sum_launcher(shape, dtype, blocks.device)(blocks, out)
    return out


@functools.lru_cache(maxsize=1024)
def _block_sum_launcher(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Launcher:
    size = math.prod(shape[1:])
    return Launcher(sum_blocks_kernel, (cdiv(size, _SUM_BLOCK),), size=size, count=shape[0], BLOCK=_SUM_BLOCK)
