"""Deformable sampling on a GPU in Triton: a kernel forward, and three backward with memory for them.

A row is a position's channels of one group. A program has some rows of an image, and for each sample reads the four
around it. Backward, the gradient of what was predicted is a sum for each row. That of the map is added from wherever it
was read, in an order that no run repeats: so in whole numbers, whose sum does not depend on it. They are 64-bit ones of
a unit for each image, the smallest power of two in which no sum can overflow, whatever is read: 40 bits below a typical
gradient, where float32 ends 24 bits below it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vssm_kernels.deformable_sampling.arguments import NUMBERS, SamplingArguments
from vssm_kernels.gpu import Launcher, cdiv, triton_backend, why_no_triton

try:
    import triton
    import triton.language as tl

    from vssm_kernels.triton_math import saturate
except ImportError:  # why_no_triton reports it
    triton = None

# Numbers of the map of a program. To add takes half the time where each of its threads has one: they lie side by side.
READS, ADDS, WARPS = 1024, 128, 4
BLOCK = 1024

if triton is not None:

    @triton.jit
    def rows_of_program(rows, groups, width, ROWS: tl.constexpr):
        """The image of a program, its rows' numbers in the image, and their groups, rows and columns of the map."""
        blocks = tl.cdiv(rows, ROWS)
        own = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
        position = own // groups
        return (tl.program_id(0) // blocks).to(tl.int64), own, own % groups, position // width, position % width

    @triton.jit
    def line(place, offset, size):
        """The first of the two lines that a sample lies between, and how far beyond it. Far away counts as outside."""
        before = tl.floor(offset)
        is_near = (before > -size - 2) & (before < size + 2)  # not if it is NaN
        return place + tl.where(is_near, before, size + 2).to(tl.int32), offset - before

    @triton.jit
    def sample(predicted, k, row, column, height, width, exists):
        """Row and column in front of a sample, how far beyond them it lies, and its weight."""
        right = tl.load(predicted + 2 * k, mask=exists, other=0.0).to(tl.float32)
        down = tl.load(predicted + 2 * k + 1, mask=exists, other=0.0).to(tl.float32)
        weight = tl.load(predicted + 18 + k, mask=exists, other=0.0).to(tl.float32)
        row, down = line(row + k % 3 - 1, down, height)
        column, right = line(column + k // 3 - 1, right, width)
        return row, down, column, right, weight

    @triton.jit
    def corner(row, down, column, right, height, width, exists, CORNER: tl.constexpr):
        """One of the four positions around a sample: whether it is on the map, which it is, the shares of its lines."""
        by_row = down if CORNER // 2 else 1 - down
        by_column = right if CORNER % 2 else 1 - right
        row, column = row + CORNER // 2, column + CORNER % 2
        inside = exists & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        return inside, row * width + column, by_row, by_column

    @triton.jit
    def exponent_of_unit(bound):
        """Such that all sums of numbers whose sizes add up to a bound are below 2^62 units of 2^-exponent."""
        return tl.minimum(188 - (bound.to(tl.int32, bitcast=True) >> 23), 120)

    @triton.jit
    def power_of_two(exponent):
        return ((exponent + 127) << 23).to(tl.float32, bitcast=True)

    @triton.jit
    def forward_kernel(
        x, predicted, out, rows, height, width, groups, channels, numbers,
        ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """The weighted sums."""
        image, own, group, row, column = rows_of_program(rows, groups, width, ROWS)
        c = tl.arange(0, CHANNELS)
        exists, mask = own < rows, (own < rows)[:, None] & (c < channels)[None, :]
        x += image * rows * channels
        predicted += (image * height * width + own // groups) * numbers + group * 27
        total = tl.zeros((ROWS, CHANNELS), tl.float32)
        for k in range(9):
            r, down, q, right, weight = sample(predicted, k, row, column, height, width, exists)
            for i in tl.static_range(4):
                inside, position, by_row, by_column = corner(r, down, q, right, height, width, exists, i)
                place = ((position * groups + group) * channels)[:, None] + c[None, :]
                read = tl.load(x + place, mask=mask & inside[:, None], other=0.0).to(tl.float32)
                total += (by_row * by_column * weight)[:, None] * read
        own_place = image * rows * channels + own[:, None] * channels + c[None, :]
        tl.store(out + own_place, saturate(total, out.dtype.element_ty), mask=mask)

    @triton.jit
    def predicted_kernel(
        x, predicted, gradient, dpredicted, bounds, rows, height, width, groups, channels, numbers,
        ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """The gradient of what was predicted, and a bound of all that the program's rows give to the map."""
        image, own, group, row, column = rows_of_program(rows, groups, width, ROWS)
        c = tl.arange(0, CHANNELS)
        exists, mask = own < rows, (own < rows)[:, None] & (c < channels)[None, :]
        x += image * rows * channels
        own_numbers = (image * height * width + own // groups) * numbers + group * 27
        predicted += own_numbers
        n, found = tl.arange(0, 32)[None, :], tl.zeros((ROWS, 32), tl.float32)  # stored at once: a store has barriers
        own_place = image * rows * channels + own[:, None] * channels + c[None, :]
        given = tl.load(gradient + own_place, mask=mask, other=0.0).to(tl.float32)
        weights = tl.zeros((ROWS,), tl.float32)
        for k in range(9):
            r, down, q, right, weight = sample(predicted, k, row, column, height, width, exists)
            weights += tl.abs(weight)
            dweight = tl.zeros((ROWS,), tl.float32)
            ddown, dright = dweight, dweight
            for i in tl.static_range(4):
                inside, position, by_row, by_column = corner(r, down, q, right, height, width, exists, i)
                place = ((position * groups + group) * channels)[:, None] + c[None, :]
                read = tl.load(x + place, mask=mask & inside[:, None], other=0.0).to(tl.float32)
                share = tl.sum(given * read, 1)  # the gradient of the corner's share
                dweight += by_row * by_column * share
                ddown += (by_column if i // 2 else -by_column) * share
                dright += (by_row if i % 2 else -by_row) * share
            found = tl.where(n == 2 * k, (weight * dright)[:, None], found)
            found = tl.where(n == 2 * k + 1, (weight * ddown)[:, None], found)
            found = tl.where(n == 18 + k, dweight[:, None], found)
        tl.store(dpredicted + own_numbers[:, None] + n, found, mask=exists[:, None] & (n < 27))
        tl.store(bounds + tl.program_id(0), tl.sum(tl.sum(tl.abs(given), 1) * weights, 0))

    @triton.jit
    def add_kernel(
        predicted, gradient, bounds, sums, rows, height, width, groups, channels, numbers,
        ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """Add the gradient of every position to the sums of what it has read, in units."""
        image, own, group, row, column = rows_of_program(rows, groups, width, ROWS)
        c = tl.arange(0, CHANNELS)
        exists, mask = own < rows, (own < rows)[:, None] & (c < channels)[None, :]
        sums += image * rows * channels
        predicted += (image * height * width + own // groups) * numbers + group * 27
        own_place = image * rows * channels + own[:, None] * channels + c[None, :]
        given = tl.load(gradient + own_place, mask=mask, other=0.0).to(tl.float32)
        units = power_of_two(exponent_of_unit(tl.load(bounds + image)))
        for k in range(9):
            r, down, q, right, weight = sample(predicted, k, row, column, height, width, exists)
            for i in tl.static_range(4):
                inside, position, by_row, by_column = corner(r, down, q, right, height, width, exists, i)
                share = by_row * by_column * weight
                place = ((position * groups + group) * channels)[:, None] + c[None, :]
                amount = (given * share[:, None] * units).to(tl.int64)
                tl.atomic_add(sums + place, amount, mask=mask & (inside & (share != 0))[:, None], sem="relaxed")

    @triton.jit
    def read_kernel(sums, bounds, out, size, BLOCK: tl.constexpr):
        """The gradient of the map from sums in units; NaN in all of an image where something was not finite."""
        blocks = tl.cdiv(size, BLOCK)
        image = (tl.program_id(0) // blocks).to(tl.int64)
        place = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
        bound = tl.load(bounds + image)
        value = tl.load(sums + image * size + place, mask=place < size, other=0).to(tl.float32)
        value = tl.where(bound < float("inf"), value * power_of_two(-exponent_of_unit(bound)), float("nan"))
        tl.store(out + image * size + place, value, mask=place < size)


def plan_sampling(args: SamplingArguments, save: bool) -> Callable[[SamplingArguments], tuple[Tensor, None]]:
    launch, _ = _plan(args, forward_kernel, READS)
    shape, dtype, device = args.x.shape, args.x.dtype, args.device

    def run(args: SamplingArguments) -> tuple[Tensor, None]:
        out = torch.empty(shape, dtype=dtype, device=device)
        launch(args.x.contiguous(), args.predicted.contiguous(), out)
        return out, None

    return run


def plan_sampling_backward(
    args: SamplingArguments, gradient: Tensor
) -> Callable[[SamplingArguments, Tensor], tuple[Tensor, Tensor]]:
    read, blocks = _plan(args, predicted_kernel, READS)
    add, _ = _plan(args, add_kernel, ADDS)
    shape, device = args.x.shape, args.device
    batch, size = shape[0], args.x[0].numel()
    convert = Launcher(read_kernel, (batch * cdiv(size, BLOCK),), size=size, BLOCK=BLOCK)
    numbers, dtype, dtype_of_predicted = args.predicted.shape, args.x.dtype, args.predicted.dtype
    make = torch.empty if numbers[-1] == NUMBERS * args.groups else torch.zeros  # some are not predictions

    def run(args: SamplingArguments, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gradient, predicted = gradient.contiguous(), args.predicted.contiguous()
        dpredicted = make(numbers, dtype=dtype_of_predicted, device=device)
        bounds = torch.empty((batch, blocks), dtype=torch.float32, device=device)
        read(args.x.contiguous(), predicted, gradient, dpredicted, bounds)
        bounds = bounds.sum(1)
        sums = torch.zeros(shape, dtype=torch.int64, device=device)
        add(predicted, gradient, bounds, sums)
        dx = torch.empty(shape, dtype=dtype, device=device)
        convert(sums, bounds, dx)
        return dx, dpredicted

    return run


def _plan(args: SamplingArguments, kernel: object, numbers: int) -> tuple[Launcher, int]:
    """A kernel whose programs have so many numbers of the map, and how many programs an image has."""
    batch, height, width, channels = args.x.shape
    rows, channels = height * width * args.groups, channels // args.groups
    block = 1 << (channels - 1).bit_length()
    rows_of_program = max(1, numbers // block)
    programs = cdiv(rows, rows_of_program)
    launch = Launcher(
        kernel,
        (batch * programs,),
        rows=rows,
        height=height,
        width=width,
        groups=args.groups,
        channels=channels,
        numbers=args.predicted.shape[-1],
        ROWS=rows_of_program,
        CHANNELS=block,
        num_warps=WARPS,
    )
    return launch, programs


def _why_not(args: SamplingArguments | None) -> str | None:
    if args is not None and not args.x.numel():
        return "has nothing to do"
    return why_no_triton(*(() if args is None else args.tensors()))


BACKEND = triton_backend(plan_sampling, plan_sampling_backward, _why_not)
