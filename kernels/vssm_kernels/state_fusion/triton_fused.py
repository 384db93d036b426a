"""The fusion of states on a GPU in Triton: a pass over the map forward, two backward.

A program has some columns of a row and some channels, and reads each neighbour's as they are needed: the map's rows
stay in the GPU's cache. The gradient of the states is the same walk with mirrored offsets, over a map with margins,
which are then folded onto the border. That of the weight is added up over some rows by each program, and over programs
by torch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vssm_kernels.gpu import Launcher, cdiv, triton_backend, why_no_triton
from vssm_kernels.state_fusion.arguments import FusionArguments
from vssm_kernels.state_fusion.reference import folded

try:
    import triton
    import triton.language as tl
except ImportError:  # why_no_triton reports it
    triton = None

COLUMNS, CHANNELS, WARPS = 8, 64, 4
ROWS = 8  # that a program adds up for the gradient of the weight

if triton is not None:

    @triton.jit
    def neighbour(x, base, row, columns, c, mask, height, width, channels, down, right, REPEATS: tl.constexpr):
        """What lies so many rows down and columns to the right; beyond the map its border, or zeros."""
        y, x_ = row + down + 0 * columns, columns + right  # both of the columns' shape
        if REPEATS:
            y, x_ = tl.minimum(tl.maximum(y, 0), height - 1), tl.minimum(tl.maximum(x_, 0), width - 1)
        else:
            inside = (x_ >= 0) & (x_ < width) & (y >= 0) & (y < height)
            mask = mask & inside[:, None]
        place = base + (y * width + x_)[:, None] * channels + c[None, :]
        return tl.load(x + place, mask=mask, other=0.0)

    @triton.jit
    def walk_kernel(
        x, weight, out, height, width, channels, margin,
        DILATIONS: tl.constexpr, MIRRORED: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """The fused map; mirrored, the gradient of the states with margins from that of the fused map."""
        across = width + 2 * margin
        program = tl.program_id(0).to(tl.int64)
        image, row = program // (height + 2 * margin), program % (height + 2 * margin)
        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
        mask = (columns[:, None] < across) & (c[None, :] < channels)
        base = image * height * width * channels
        sign = -1 if MIRRORED else 1
        total = tl.zeros((COLUMNS, CHANNELS), tl.float32)
        for tap in tl.static_range(9 * DILATIONS):
            dilation = 2 * (tap // 9) + 1
            down, right = sign * (tap % 9 // 3 - 1) * dilation, sign * (tap % 3 - 1) * dilation
            value = neighbour(
                x, base, row - margin, columns - margin, c, mask, height, width, channels, down, right, not MIRRORED
            )
            total += value * tl.load(weight + tap * channels + c, mask=c < channels, other=0.0)[None, :]
        place = program * across * channels + columns[:, None] * channels + c[None, :]
        tl.store(out + place, total, mask=mask)

    @triton.jit
    def weight_kernel(
        x, gradient, out, rows, height, width, channels, lines,
        ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """For one line of three taps, the products of the fused map's gradient and what they read, over some rows."""
        line = tl.program_id(2) % lines
        c = tl.program_id(2) // lines * CHANNELS + tl.arange(0, CHANNELS)
        dilation = 2 * (line // 3) + 1
        down = (line % 3 - 1) * dilation
        left = tl.zeros((COLUMNS, CHANNELS), tl.float32)
        middle, right = left, left
        first = tl.program_id(0).to(tl.int64) * ROWS
        for number in range(first, tl.minimum(first + ROWS, rows)):
            base, row = number // height * height * width * channels, number % height
            for start in range(0, width, COLUMNS):
                columns = start + tl.arange(0, COLUMNS)
                mask = (columns[:, None] < width) & (c[None, :] < channels)
                place = number * width * channels + columns[:, None] * channels + c[None, :]
                g = tl.load(gradient + place, mask=mask, other=0.0)
                left += g * neighbour(x, base, row, columns, c, mask, height, width, channels, down, -dilation, True)
                middle += g * neighbour(x, base, row, columns, c, mask, height, width, channels, down, 0, True)
                right += g * neighbour(x, base, row, columns, c, mask, height, width, channels, down, dilation, True)
        place = (tl.program_id(0) * lines + line) * 3 * channels + c
        tl.store(out + place, tl.sum(left, 0), mask=c < channels)
        tl.store(out + place + channels, tl.sum(middle, 0), mask=c < channels)
        tl.store(out + place + 2 * channels, tl.sum(right, 0), mask=c < channels)


def plan_fusion(args: FusionArguments, save: bool) -> Callable[[FusionArguments], tuple[Tensor, None]]:
    walk = _plan_walk(args, mirrored=False)
    return lambda args: (walk(args.states, args.weight), None)


def plan_fusion_backward(
    args: FusionArguments, gradient: Tensor
) -> Callable[[FusionArguments, Tensor], tuple[Tensor, Tensor]]:
    batch, height, width, channels = args.states.shape
    margin, rows, taps, device = args.margin, batch * height, args.weight[:, 0].numel(), args.device
    walk = _plan_walk(args, mirrored=True)
    launch = Launcher(
        weight_kernel,
        (cdiv(rows, ROWS), 1, taps // 3 * cdiv(channels, CHANNELS)),
        rows=rows,
        height=height,
        width=width,
        channels=channels,
        lines=taps // 3,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        CHANNELS=CHANNELS,
        num_warps=WARPS,
    )

    def run(args: FusionArguments, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gradient = gradient.float().contiguous()
        dstates = folded(folded(walk(gradient, args.weight), margin, 1), margin, 2)
        parts = torch.empty((cdiv(rows, ROWS), taps, channels), dtype=torch.float32, device=device)
        launch(args.states.float().contiguous(), gradient, parts)
        dweight = parts.sum(0).view(-1, 9, channels).transpose(1, 2).reshape(args.weight.shape)
        return dstates.to(args.states.dtype), dweight.to(args.weight.dtype)

    return run


def _plan_walk(args: FusionArguments, mirrored: bool) -> Callable[[Tensor, Tensor], Tensor]:
    batch, height, width, channels = args.states.shape
    margin = args.margin if mirrored else 0
    shape, device = (batch, height + 2 * margin, width + 2 * margin, channels), args.device
    launch = Launcher(
        walk_kernel,
        (shape[0] * shape[1], cdiv(shape[2], COLUMNS), cdiv(channels, CHANNELS)),
        height=height,
        width=width,
        channels=channels,
        margin=margin,
        DILATIONS=len(args.weight),
        MIRRORED=mirrored,
        COLUMNS=COLUMNS,
        CHANNELS=CHANNELS,
        num_warps=WARPS,
    )

    def run(x: Tensor, weight: Tensor) -> Tensor:
        out = torch.empty(shape, dtype=torch.float32, device=device)
        # By taps, so that the channels of one lie side by side.
        launch(x.float().contiguous(), weight.float().flatten(2).transpose(1, 2).contiguous(), out)
        return out

    return run


def _why_not(args: FusionArguments | None) -> str | None:
    if args is not None and not args.states.numel():
        return "has nothing to do"
    return why_no_triton(*(() if args is None else args.tensors()))


BACKEND = triton_backend(plan_fusion, plan_fusion_backward, _why_not)
