"""The norm of summed directions on a GPU in Triton: one read of the directions' rows, one write of the normed row.

Torch gives each row a block of threads, too many for the 96 to 768 channels of these models; here a program takes a
tile of several rows. The backward recomputes the rows' statistics, which is cheaper than storing them. Its programs
take the rows in a fixed pattern and each sums its share of the gradients of weight and bias, so two runs are
bit-equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vssm_kernels.gpu import Launcher, cdiv, triton_backend, why_no_triton
from vssm_kernels.shares import programs_of, shares_launcher, tile_of_rows
from vssm_kernels.sum_norm.arguments import NormArguments

try:
    import triton
    import triton.language as tl

    from vssm_kernels.triton_math import saturate
except ImportError:  # why_no_triton reports it
    triton = None

_STAGES = 2  # tiles that a program of the backward has in flight

if triton is not None:

    @triton.jit
    def load_rows(base, row, stride, c, mask):
        return tl.load(base + row[:, None] * stride + c[None, :], mask=mask, other=0.0).to(tl.float32)

    @triton.jit
    def store_rows(base, row, stride, c, mask, values):
        tl.store(base + row[:, None] * stride + c[None, :], values.to(base.dtype.element_ty), mask=mask)

    @triton.jit
    def channels_of_group(CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
        """The channels of this program's group, and which of them exist."""
        c = tl.arange(0, BLOCK_C)
        return tl.program_id(1) * CHANNELS + c, c < CHANNELS

    @triton.jit
    def normalise(values, mask, eps, CHANNELS: tl.constexpr, CENTER: tl.constexpr):
        """Rows with mean 0 (with CENTER) and mean square 1, and the factors that scaled them."""
        if CENTER:  # before squaring: the difference of two large sums would lose the variance
            mean = tl.sum(values, 1) / CHANNELS
            values = tl.where(mask, values - mean[:, None], 0.0)
        factor = tl.rsqrt(tl.sum(values * values, 1) / CHANNELS + eps)
        return values * factor[:, None], factor

    @triton.jit
    def branch_scale(kept, row, rows, sample, kept_scale):
        """The factor of each row's branch: of its sample, `sample` rows of which follow one another."""
        return kept_scale * tl.load(kept + row // sample, mask=row < rows, other=0.0).to(tl.float32)[:, None]

    @triton.jit(do_not_specialize=["rows", "sample", "kept_scale"])
    def forward_kernel(
        x, weight, bias, y, merged, branch, branch_bias, kept,
        rows, row_stride, direction_stride, eps, sample, kept_scale,
        DIRECTIONS: tl.constexpr, CENTER: tl.constexpr,
        WIDTH: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        c, exists = channels_of_group(CHANNELS, BLOCK_C)
        mask = (row < rows)[:, None] & exists[None, :]
        values = load_rows(x, row, row_stride, c, mask)
        if DIRECTIONS > 1:
            for _ in tl.static_range(DIRECTIONS - 1):
                x += direction_stride
                values += load_rows(x, row, row_stride, c, mask)
        if branch is not None:
            added = load_rows(branch, row, WIDTH, c, mask)
            if branch_bias is not None:
                added += tl.load(branch_bias + c, mask=exists, other=0.0).to(tl.float32)[None, :]
            values += added if kept is None else added * branch_scale(kept, row, rows, sample, kept_scale)
        if DIRECTIONS > 1 or branch is not None:
            values = saturate(values, x.dtype.element_ty).to(tl.float32)
            if merged is not None:
                store_rows(merged, row, WIDTH, c, mask, values)
        normed, _ = normalise(values, mask, eps, CHANNELS, CENTER)
        if weight is not None:
            normed *= tl.load(weight + c, mask=exists, other=0.0).to(tl.float32)[None, :]
        if bias is not None:
            normed += tl.load(bias + c, mask=exists, other=0.0).to(tl.float32)[None, :]
        store_rows(y, row, WIDTH, c, mask, normed)

    @triton.jit(do_not_specialize=["rows", "turns", "sample", "kept_scale"])
    def backward_kernel(
        dy, x, weight, dx, shares, dsum, dbranch, kept, rows, turns, row_stride, eps, sample, kept_scale,
        CENTER: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_BRANCH_BIAS: tl.constexpr,
        WIDTH: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
    ):  # fmt: skip
        """dx of this program's rows, and its share of the gradients of weight, bias and the branch's bias."""
        program = tl.program_id(0).to(tl.int64)
        c, exists = channels_of_group(CHANNELS, BLOCK_C)
        scale = tl.full((BLOCK_C,), 1.0, tl.float32)
        if weight is not None:
            scale = tl.load(weight + c, mask=exists, other=0.0).to(tl.float32)
        dweight = tl.zeros((ROWS, BLOCK_C), tl.float32)
        dbias = tl.zeros((ROWS, BLOCK_C), tl.float32)
        dbranch_bias = tl.zeros((ROWS, BLOCK_C), tl.float32)
        for turn in tl.range(0, turns, num_stages=STAGES):
            row = (turn * tl.num_programs(0) + program) * ROWS + tl.arange(0, ROWS)
            mask = (row < rows)[:, None] & exists[None, :]
            gradient = load_rows(dy, row, WIDTH, c, mask)
            normed, factor = normalise(load_rows(x, row, row_stride, c, mask), mask, eps, CHANNELS, CENTER)
            dweight += gradient * normed
            dbias += gradient
            gradient *= scale[None, :]
            along = tl.sum(gradient * normed, 1) / CHANNELS
            values = gradient - normed * along[:, None]
            if CENTER:
                values -= (tl.sum(gradient, 1) / CHANNELS)[:, None]
            values *= factor[:, None]
            if dsum is not None:
                values += load_rows(dsum, row, WIDTH, c, mask)
            store_rows(dx, row, WIDTH, c, mask, values)
            if dbranch is not None:
                if kept is not None:
                    values *= branch_scale(kept, row, rows, sample, kept_scale)
                store_rows(dbranch, row, WIDTH, c, mask, values)
                if HAS_BRANCH_BIAS:
                    dbranch_bias += values
        shares += program * (1 + HAS_BIAS + HAS_BRANCH_BIAS) * WIDTH + c
        tl.store(shares, tl.sum(dweight, 0), mask=exists)
        if HAS_BIAS:
            tl.store(shares + WIDTH, tl.sum(dbias, 0), mask=exists)
        if HAS_BRANCH_BIAS:
            tl.store(shares + (1 + HAS_BIAS) * WIDTH, tl.sum(dbranch_bias, 0), mask=exists)


def plan_norm(args: NormArguments, save: bool) -> Callable[[NormArguments], tuple[Tensor, Tensor | None]]:
    """The output in args.dtype and, where there are several directions, their sum in x's dtype."""
    launch = _plan_forward(args)
    shape, dtype, device, directions = args.output_shape, args.dtype, args.x.device, args.directions
    shape_of_sums = (*shape[:-1], 1, shape[-1]) if save and directions > 1 else None
    contiguous = args.x.is_contiguous()

    def run(args: NormArguments) -> tuple[Tensor, Tensor | None]:
        x = args.x if contiguous else _rows(args.x, directions)[0]
        y, sums = torch.empty(shape, dtype=dtype, device=device), None
        if shape_of_sums is not None:
            sums = torch.empty(shape_of_sums, dtype=x.dtype, device=device)
        launch(x, args.weight, args.bias, y, sums, None, None, None)
        return y, sums

    return run


def plan_norm_backward(args: NormArguments, gradient: Tensor) -> Callable[[NormArguments, Tensor], tuple]:
    """The gradients of x, of one direction where it has any, and of weight and bias."""
    run_backward, contiguous = _plan_backward(args), args.x.is_contiguous()

    def run(args: NormArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x = args.x if contiguous else _rows(args.x, 1)[0]
        dx = torch.empty(args.x.shape, dtype=x.dtype, device=x.device)
        return dx, *run_backward(args, gradient.contiguous(), x, dx)[:2]

    return run


def plan_add(args: NormArguments, sample: int, scale: float) -> Callable[..., tuple[Tensor, Tensor]]:
    """(args, branch, its bias, kept) to their sum and its norm, see `add_norm`; `sample` rows of x share a number in
    kept."""
    launch = _plan_forward(args, sample, scale)

    def run(
        args: NormArguments, branch: Tensor, branch_bias: Tensor | None, kept: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        total, y = torch.empty_like(args.x), torch.empty_like(args.x, dtype=args.dtype)
        launch(args.x, args.weight, args.bias, y, total, branch, branch_bias, kept)
        return total, y

    return run


def plan_add_backward(
    args: NormArguments, branch: torch.dtype, branch_bias: torch.dtype | None, sample: int, scale: float
) -> Callable[..., tuple]:
    """(args, dtotal, dy, kept) to the gradients of x, branch, weight, bias and the branch's bias; in args the sum
    stands in place of x, and of the branch and its bias the dtypes are known."""
    run_backward = _plan_backward(args, branch_bias, sample, scale)

    def run(args: NormArguments, dtotal: Tensor | None, dy: Tensor, kept: Tensor | None) -> tuple[Tensor | None, ...]:
        dx, dbranch = torch.empty_like(args.x), torch.empty_like(args.x, dtype=branch)
        return dx, dbranch, *run_backward(args, dy, args.x, dx, dtotal, dbranch, kept)

    return run


def _plan_forward(args: NormArguments, sample: int = 1, scale: float = 1.0) -> Launcher:
    x, row_stride, direction_stride = _rows(args.x, args.directions)
    channels = x.shape[-1]
    rows, tile = math.prod(args.output_shape) // channels, tile_of_rows(channels // args.groups)
    return Launcher(
        forward_kernel,
        (cdiv(rows, tile["ROWS"]), args.groups),
        rows=rows,
        row_stride=row_stride,
        direction_stride=direction_stride,
        eps=args.eps,
        sample=sample,
        kept_scale=scale,
        DIRECTIONS=args.directions,
        CENTER=args.center,
        WIDTH=channels,
        **tile,
    )


def _plan_backward(
    args: NormArguments, branch_bias: torch.dtype | None = None, sample: int = 1, scale: float = 1.0
) -> Callable[..., tuple]:
    """(args, dy, x, dx, ...) to the gradients of weight, bias and the branch's bias; writes dx, and what else the
    kernel is given."""
    x, row_stride, _ = _rows(args.x, 1)
    has_bias, channels, device = args.bias is not None, x.shape[-1], x.device
    rows, tile = math.prod(args.x.shape) // channels, tile_of_rows(channels // args.groups)
    programs, turns = programs_of(cdiv(rows, tile["ROWS"]))
    columns = (1 + has_bias + (branch_bias is not None)) * channels
    launch = Launcher(
        backward_kernel,
        (programs, args.groups),
        rows=rows,
        turns=turns,
        row_stride=row_stride,
        eps=args.eps,
        sample=sample,
        kept_scale=scale,
        CENTER=args.center,
        HAS_BIAS=has_bias,
        HAS_BRANCH_BIAS=branch_bias is not None,
        WIDTH=channels,
        STAGES=_STAGES,
        **tile,
    )
    sum_shares = shares_launcher(programs, channels, columns)

    def run(
        args: NormArguments,
        dy: Tensor,
        x: Tensor,
        dx: Tensor,
        dsum: Tensor | None = None,
        dbranch: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        weight, bias = args.weight, args.bias
        shares = torch.empty((programs, columns), dtype=torch.float32, device=device)
        launch(dy, x, weight, dx, shares, dsum, dbranch, kept)
        dweight, dbias = (None if tensor is None else torch.empty_like(tensor) for tensor in (weight, bias))
        dbranch_bias = None if branch_bias is None else torch.empty(channels, dtype=branch_bias, device=device)
        if columns > channels or weight is not None:
            second, third = (dbias, dbranch_bias) if has_bias else (dbranch_bias, None)
            sum_shares(shares, dweight, second, third)
        return dweight, dbias, dbranch_bias

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


def _why_not(args: NormArguments | None) -> str | None:
    if args is None:
        return why_no_triton()
    if any(tensor is not None and tensor.stride(0) != 1 for tensor in (args.weight, args.bias)):
        return "reads contiguous weights and biases only"
    return why_no_triton(*args.tensors())


BACKEND = triton_backend(plan_norm, plan_norm_backward, _why_not, lambda args: args.saved(args.x.dtype))
