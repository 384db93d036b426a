"""The norm of summed directions on a GPU in Triton: one read of the directions' rows, one write of the normed row.

Torch gives each row a block of threads, too many for the 96 to 768 channels of these models; here a program takes a
tile of several rows. The backward recomputes the rows' statistics, which is cheaper than storing them. Its programs
take the rows in a fixed pattern and each sums its share of the gradients of weight and bias, so two runs are
bit-equal.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from vssm_kernels.gpu import Launcher, cdiv, triton_backend, why_no_triton
from vssm_kernels.sum_norm.arguments import NormArguments

try:
    import triton
    import triton.language as tl

    from vssm_kernels.triton_math import saturate
except ImportError:  # why_no_triton reports it
    triton = None

_TILE = 2048  # elements of a program's tile; its rows are padded to a power of two channels
_SHARES_MAX = 1024  # programs of the backward, the same on every device
_STAGES = 2  # tiles that a program of the backward has in flight

if triton is not None:

    @triton.jit
    def load_rows(base, row, stride, c, mask):
        return tl.load(base + row[:, None] * stride + c[None, :], mask=mask, other=0.0).to(tl.float32)

    @triton.jit
    def store_rows(base, row, stride, c, mask, values):
        tl.store(base + row[:, None] * stride + c[None, :], values.to(base.dtype.element_ty), mask=mask)

    @triton.jit
    def normalise(values, mask, eps, CHANNELS: tl.constexpr, CENTER: tl.constexpr):
        """Rows with mean 0 (with CENTER) and mean square 1, and the factors that scaled them."""
        if CENTER:  # before squaring: the difference of two large sums would lose the variance
            mean = tl.sum(values, 1) / CHANNELS
            values = tl.where(mask, values - mean[:, None], 0.0)
        factor = tl.rsqrt(tl.sum(values * values, 1) / CHANNELS + eps)
        return values * factor[:, None], factor

    @triton.jit(do_not_specialize=["rows"])
    def forward_kernel(
        x, weight, bias, y, merged, rows, row_stride, direction_stride, eps,
        DIRECTIONS: tl.constexpr, CENTER: tl.constexpr,
        CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        c = tl.arange(0, BLOCK_C)
        mask = (row < rows)[:, None] & (c < CHANNELS)[None, :]
        values = load_rows(x, row, row_stride, c, mask)
        if DIRECTIONS > 1:
            for _ in tl.static_range(DIRECTIONS - 1):
                x += direction_stride
                values += load_rows(x, row, row_stride, c, mask)
            values = saturate(values, x.dtype.element_ty).to(tl.float32)
            if merged is not None:
                store_rows(merged, row, CHANNELS, c, mask, values)
        normed, _ = normalise(values, mask, eps, CHANNELS, CENTER)
        if weight is not None:
            normed *= tl.load(weight + c, mask=c < CHANNELS, other=0.0).to(tl.float32)[None, :]
        if bias is not None:
            normed += tl.load(bias + c, mask=c < CHANNELS, other=0.0).to(tl.float32)[None, :]
        store_rows(y, row, CHANNELS, c, mask, normed)

    @triton.jit(do_not_specialize=["rows", "turns"])
    def backward_kernel(
        dy, x, weight, dx, shares, rows, turns, row_stride, eps,
        CENTER: tl.constexpr, HAS_BIAS: tl.constexpr,
        CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
    ):  # fmt: skip
        """dx of this program's rows, and its share of the gradients of weight and bias."""
        program = tl.program_id(0).to(tl.int64)
        c = tl.arange(0, BLOCK_C)
        scale = tl.full((BLOCK_C,), 1.0, tl.float32)
        if weight is not None:
            scale = tl.load(weight + c, mask=c < CHANNELS, other=0.0).to(tl.float32)
        dweight = tl.zeros((ROWS, BLOCK_C), tl.float32)
        dbias = tl.zeros((ROWS, BLOCK_C), tl.float32)
        for turn in tl.range(0, turns, num_stages=STAGES):
            row = (turn * tl.num_programs(0) + program) * ROWS + tl.arange(0, ROWS)
            mask = (row < rows)[:, None] & (c < CHANNELS)[None, :]
            gradient = load_rows(dy, row, CHANNELS, c, mask)
            normed, factor = normalise(load_rows(x, row, row_stride, c, mask), mask, eps, CHANNELS, CENTER)
            dweight += gradient * normed
            dbias += gradient
            gradient *= scale[None, :]
            along = tl.sum(gradient * normed, 1) / CHANNELS
            values = gradient - normed * along[:, None]
            if CENTER:
                values -= (tl.sum(gradient, 1) / CHANNELS)[:, None]
            store_rows(dx, row, CHANNELS, c, mask, values * factor[:, None])
        shares += program * (1 + HAS_BIAS) * CHANNELS + c
        tl.store(shares, tl.sum(dweight, 0), mask=c < CHANNELS)
        if HAS_BIAS:
            tl.store(shares + CHANNELS, tl.sum(dbias, 0), mask=c < CHANNELS)


def plan_norm(args: NormArguments, save: bool) -> Callable[[NormArguments], tuple[Tensor, Tensor | None]]:
    """The output in args.dtype and, where there are several directions, their sum in x's dtype."""
    x, row_stride, direction_stride = _rows(args.x, args.directions)
    channels, directions, shape, dtype, device = x.shape[-1], args.directions, args.output_shape, args.dtype, x.device
    shape_of_sums = (*args.x.shape[:-2], 1, channels) if save and directions > 1 else None
    rows, tile, contiguous = math.prod(shape) // channels, _tile(channels), args.x.is_contiguous()
    launch = Launcher(
        forward_kernel,
        (cdiv(rows, tile["ROWS"]),),
        rows=rows,
        row_stride=row_stride,
        direction_stride=direction_stride,
        eps=args.eps,
        DIRECTIONS=directions,
        CENTER=args.center,
        **tile,
    )

    def run(args: NormArguments) -> tuple[Tensor, Tensor | None]:
        x = args.x if contiguous else _rows(args.x, directions)[0]
        y, sums = torch.empty(shape, dtype=dtype, device=device), None
        if shape_of_sums is not None:
            sums = torch.empty(shape_of_sums, dtype=x.dtype, device=device)
        launch(x, args.weight, args.bias, y, sums)
        return y, sums

    return run


def plan_norm_backward(args: NormArguments, gradient: Tensor) -> Callable[[NormArguments, Tensor], tuple]:
    """The gradients of x, of one direction where it has any, and of weight and bias."""
    x, row_stride, _ = _rows(args.x, 1)
    has_bias, channels, shape, device = args.bias is not None, x.shape[-1], args.x.shape, x.device
    rows, tile, contiguous = gradient.numel() // channels, _tile(channels), args.x.is_contiguous()
    tiles = cdiv(rows, tile["ROWS"])
    turns = max(1, cdiv(tiles, _SHARES_MAX))
    programs = cdiv(tiles, turns)
    launch = Launcher(
        backward_kernel,
        (programs,),
        rows=rows,
        turns=turns,
        row_stride=row_stride,
        eps=args.eps,
        CENTER=args.center,
        HAS_BIAS=has_bias,
        STAGES=_STAGES,
        **tile,
    )

    def run(args: NormArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = args.x if contiguous else _rows(args.x, 1)[0], args.weight
        dx = torch.empty(shape, dtype=x.dtype, device=device)
        shares = torch.empty((programs, 1 + has_bias, channels), dtype=torch.float32, device=device)
        launch(gradient.contiguous(), x, weight, dx, shares)
        sums = shares.sum(0)
        dweight = None if weight is None else sums[0].to(weight.dtype)
        return dx, dweight, sums[1].to(args.bias.dtype) if has_bias else None

    return run


def _rows(x: Tensor, directions: int) -> tuple[Tensor, int, int]:
    """x with contiguous channels, and its strides from row to row and from direction to direction."""
    channels = x.shape[-1]
    if x.is_contiguous():
        return x, directions * channels, channels
    x = x.reshape(-1, directions, channels)
    if x.stride(2) != 1:
        x = x.contiguous()
    return x, x.stride(0), x.stride(1)


@functools.lru_cache
def _tile(channels: int) -> dict[str, int]:
    block = triton.next_power_of_2(channels)
    rows = max(1, _TILE // block)
    return {"CHANNELS": channels, "BLOCK_C": block, "ROWS": rows, "num_warps": min(16, max(4, block // 512))}


def _why_not(args: NormArguments | None) -> str | None:
    if args is None:
        return why_no_triton()
    if any(tensor is not None and tensor.stride(0) != 1 for tensor in (args.weight, args.bias)):
        return "reads contiguous weights and biases only"
    return why_no_triton(*args.tensors())


BACKEND = triton_backend(plan_norm, plan_norm_backward, _why_not, lambda args: args.saved(args.x.dtype))
