"""The fusion of states on a GPU in Triton: a pass over the map forward, three backward.

A program has some positions and some channels of a map, and reads each neighbour's as they are needed: the map's rows
stay in the GPU's cache. Each thread has several positions, so that it loads a weight once for all of them. The gradient
of the states is the same walk with mirrored offsets, over a map with margins, which a second pass adds to the border.
That of the weight is added up over some rows by each program, and over programs by torch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vssm_kernels.gpu import Launcher, cdiv, triton_backend, why_no_triton
from vssm_kernels.state_fusion.arguments import FusionArguments

try:
    import triton
    import triton.language as tl
except ImportError:  # why_no_triton reports it
    triton = None

_WALK_TILE = {"POSITIONS": 32, "CHANNELS": 64, "num_warps": 4}
_FOLD_TILE = {"POSITIONS": 4, "CHANNELS": 64, "num_warps": 2}
_WEIGHT_TILE = {"ROWS": 8, "COLUMNS": 4, "CHANNELS": 64, "num_warps": 2}  # ROWS: that a program adds up

if triton is not None:

    @triton.jit
    def positions_of_program(tiles, width, POSITIONS: tl.constexpr, WIDE: tl.constexpr):
        """The image of this program, its positions in it, and their rows and columns."""
        program = tl.program_id(0)
        place = program % tiles * POSITIONS + tl.arange(0, POSITIONS)
        if WIDE:
            place = place.to(tl.int64)
        return (program // tiles).to(tl.int64), place, place // width, place % width

    @triton.jit
    def within(x, size):
        """The nearest of the rows, or columns, of a map of this size."""
        return tl.minimum(tl.maximum(x, 0), size - 1)

    @triton.jit
    def offsets(place, c, channels):
        """Of the channels c at some positions of a map."""
        return place[:, None] * channels + c[None, :]

    @triton.jit
    def load(x, place, c, channels, mask):
        return tl.load(x + offsets(place, c, channels), mask=mask, other=0.0).to(tl.float32)

    @triton.jit(do_not_specialize=["tiles", "positions"])
    def walk_kernel(
        x, weight, out, tiles, positions, height, width, channels,
        DILATIONS: tl.constexpr, MARGIN: tl.constexpr,
        POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        """The fused map; with a margin, the gradient of the states and their margins from that of the fused map."""
        image, place, row, column = positions_of_program(tiles, width + 2 * MARGIN, POSITIONS, WIDE)
        c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        exists = (c < channels)[None, :]
        x += image * height * width * channels
        out += image * positions * channels
        total = tl.zeros((POSITIONS, CHANNELS), tl.float32)
        for tap in tl.static_range(9 * DILATIONS):
            dilation = 2 * (tap // 9) + 1
            down, right = (tap % 9 // 3 - 1) * dilation, (tap % 3 - 1) * dilation
            mask = exists
            if MARGIN > 0:
                y, x_ = row - MARGIN - down, column - MARGIN - right
                mask = mask & ((y >= 0) & (y < height) & (x_ >= 0) & (x_ < width))[:, None]
            else:
                y, x_ = within(row + down, height), within(column + right, width)
            factor = tl.load(weight + tap * channels + c, mask=c < channels, other=0.0)
            total += load(x, y * width + x_, c, channels, mask) * factor[None, :]
        tl.store(out + offsets(place, c, channels), total, mask=(place < positions)[:, None] & exists)

    @triton.jit(do_not_specialize=["tiles", "positions"])
    def fold_kernel(
        extended, out, tiles, positions, height, width, channels,
        MARGIN: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        """The gradient of a map from that of the map with its border repeated: the margins' goes to the border."""
        image, place, row, column = positions_of_program(tiles, width, POSITIONS, WIDE)
        c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        mask = (place < positions)[:, None] & (c < channels)[None, :]
        across = width + 2 * MARGIN
        extended += image * (height + 2 * MARGIN) * across * channels
        total = tl.zeros((POSITIONS, CHANNELS), tl.float32)
        # Only tiles at the upper or lower border have margins above or below them.
        first, last = tl.min(row, 0), tl.max(row, 0)
        above, below = tl.where(first == 0, -MARGIN, 0), tl.where(last >= height - 1, MARGIN, 0)
        for down in range(above, below + 1):
            for right in tl.static_range(-MARGIN, MARGIN + 1):
                y, x = row + down, column + right
                repeats = (within(y, height) == row) & (within(x, width) == column)
                from_ = (y + MARGIN) * across + x + MARGIN
                total += load(extended, from_, c, channels, mask & repeats[:, None])
        out += image * positions * channels
        tl.store(out + offsets(place, c, channels), total.to(out.dtype.element_ty), mask=mask)

    @triton.jit(do_not_specialize=["rows"])
    def weight_kernel(
        x, gradient, out, rows, height, width, channels, lines,
        ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """For one line of three taps, the products of the fused map's gradient and what they read, over some rows."""
        line = tl.program_id(1) % lines
        c = tl.program_id(1) // lines * CHANNELS + tl.arange(0, CHANNELS)
        dilation = 2 * (line // 3) + 1
        down = (line % 3 - 1) * dilation
        left = tl.zeros((COLUMNS, CHANNELS), tl.float32)
        middle, right = left, left
        first = tl.program_id(0).to(tl.int64) * ROWS
        for number in range(first, tl.minimum(first + ROWS, rows)):
            here = gradient + number * width * channels
            read = x + (number // height * height + within(number % height + down, height)) * width * channels
            for start in range(0, width, COLUMNS):
                columns = start + tl.arange(0, COLUMNS)
                mask = (columns < width)[:, None] & (c < channels)[None, :]
                g = load(here, columns, c, channels, mask)
                left += g * load(read, within(columns - dilation, width), c, channels, mask)
                middle += g * load(read, columns, c, channels, mask)
                right += g * load(read, within(columns + dilation, width), c, channels, mask)
        place = (tl.program_id(0) * lines + line) * 3 * channels + c
        tl.store(out + place, tl.sum(left, 0), mask=c < channels)
        tl.store(out + place + channels, tl.sum(middle, 0), mask=c < channels)
        tl.store(out + place + 2 * channels, tl.sum(right, 0), mask=c < channels)


def plan_fusion(args: FusionArguments, save: bool) -> Callable[[FusionArguments], tuple[Tensor, None]]:
    walk = _plan_walk(args, margin=0)
    return lambda args: (walk(args.states, args.weight), None)


def plan_fusion_backward(
    args: FusionArguments, gradient: Tensor
) -> Callable[[FusionArguments, Tensor], tuple[Tensor, Tensor]]:
    batch, height, _, channels = args.states.shape
    taps, device, map_ = args.weight[:, 0].numel(), args.device, _map(args)
    walk = _plan_walk(args, args.margin)
    grid, told = _tiles(args.states.shape, _FOLD_TILE, args.margin)
    fold = Launcher(fold_kernel, grid, MARGIN=args.margin, **map_, **told)
    rows, lines = batch * height, taps // 3
    parts = cdiv(rows, _WEIGHT_TILE["ROWS"])
    grid = parts, lines * cdiv(channels, _WEIGHT_TILE["CHANNELS"])
    weigh = Launcher(weight_kernel, grid, rows=rows, lines=lines, **map_, **_WEIGHT_TILE)

    def run(args: FusionArguments, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gradient = gradient.contiguous()
        states = args.states.contiguous()
        dstates = torch.empty_like(states)
        fold(walk(gradient, args.weight), dstates)
        shares = torch.empty((parts, taps, channels), dtype=torch.float32, device=device)
        weigh(states, gradient, shares)
        dweight = shares.sum(0).view(-1, 9, channels).transpose(1, 2).reshape(args.weight.shape)
        return dstates, dweight.to(args.weight.dtype)

    return run


def _plan_walk(args: FusionArguments, margin: int) -> Callable[[Tensor, Tensor], Tensor]:
    batch, height, width, channels = args.states.shape
    shape, device = (batch, height + 2 * margin, width + 2 * margin, channels), args.device
    grid, told = _tiles(shape, _WALK_TILE)
    launch = Launcher(walk_kernel, grid, DILATIONS=len(args.weight), MARGIN=margin, **_map(args), **told)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        out = torch.empty(shape, dtype=torch.float32, device=device)
        # By taps, so that the channels of one lie side by side.
        launch(x.contiguous(), weight.float().flatten(2).transpose(1, 2).contiguous(), out)
        return out

    return run


def _map(args: FusionArguments) -> dict[str, int]:
    return dict(zip(("height", "width", "channels"), args.states.shape[1:], strict=True))


def _tiles(shape: tuple[int, ...], tile: dict[str, int], margin: int = 0) -> tuple[tuple[int, int], dict[str, int]]:
    """Programs for maps of a shape, and what they are told; with a margin they read maps so much larger."""
    batch, height, width, channels = shape
    positions = height * width
    tiles = cdiv(positions, tile["POSITIONS"])
    wide = (height + 2 * margin) * (width + 2 * margin) * channels >= 2**31
    told = {"tiles": tiles, "positions": positions, "WIDE": wide, **tile}
    return (batch * tiles, cdiv(channels, tile["CHANNELS"])), told


def _why_not(args: FusionArguments | None) -> str | None:
    if args is not None and not args.states.numel():
        return "has nothing to do"
    return why_no_triton(*(() if args is None else args.tensors()))


BACKEND = triton_backend(plan_fusion, plan_fusion_backward, _why_not)
