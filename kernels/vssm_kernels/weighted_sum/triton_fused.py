"""The weighted sum over directions, and their means, on a GPU in Triton: one pass over memory each way.

A program has some channels of one image, and some of its tokens. What is summed over tokens, the means and the
gradient of the weights, is added up by each program, and over programs by torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vssm_kernels.direction_sum import even_rows
from vssm_kernels.gpu import Launcher, cdiv, triton_backend, why_no_triton
from vssm_kernels.weighted_sum.arguments import MeanArguments, WeightedArguments

try:
    import triton
    import triton.language as tl

    from vssm_kernels.triton_math import saturate, sigmoid
except ImportError:  # why_no_triton reports it
    triton = None

ROWS, CHANNELS, WARPS = 8, 64, 4
TURNS = 16  # tiles of ROWS tokens of one program

if triton is not None:

    @triton.jit
    def place_of_program(tokens, channels, parts, TOKENS: tl.constexpr, CHANNELS: tl.constexpr):
        """Of this program: its part of the tokens, their first row, the image, its channels, and the rows' end."""
        blocks = tl.cdiv(channels, CHANNELS)
        c = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
        part = tl.program_id(0) // blocks % parts
        image = (tl.program_id(0) // blocks // parts).to(tl.int64)
        return part, image * tokens + part * TOKENS, image, c, (image + 1) * tokens

    @triton.jit
    def gate_of(z, row, c, mask, z_row):
        """silu(z), and its slope."""
        gate = tl.load(z + row * z_row + c, mask=mask, other=0.0).to(tl.float32)
        opened = sigmoid(gate)
        silu = gate * opened
        return silu, opened + silu * (1.0 - opened)

    @triton.jit
    def weigh_kernel(
        y, weights, z, out, tokens, channels, parts, z_row,
        DIRECTIONS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        _, first, image, c, end = place_of_program(tokens, channels, parts, ROWS, CHANNELS)
        row = (first + tl.arange(0, ROWS))[:, None]
        exists = c < channels
        mask = (row < end) & exists[None, :]
        total = tl.zeros((ROWS, CHANNELS), tl.float32)
        for k in tl.static_range(DIRECTIONS):
            weight = tl.load(weights + (image * DIRECTIONS + k) * channels + c, mask=exists, other=0.0)
            value = tl.load(y + (row * DIRECTIONS + k) * channels + c[None, :], mask=mask, other=0.0)
            total += value.to(tl.float32) * weight.to(tl.float32)[None, :]
        if z is not None:
            silu, _ = gate_of(z, row, c[None, :], mask, z_row)
            total *= silu
        tl.store(out + row * channels + c[None, :], saturate(total, out.dtype.element_ty), mask=mask)

    @triton.jit
    def sum_kernel(
        y, weights, z, gradient, dy, dz, shares, tokens, channels, parts, batch, z_row,
        DIRECTIONS: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, TURNS: tl.constexpr,
    ):  # fmt: skip
        """dy and dz, given weights; and with shares the sum over this program's tokens of gradient * silu(z) * y.

        Without z, and without gradient, these are one.
        """
        part, first, image, c, end = place_of_program(tokens, channels, parts, ROWS * TURNS, CHANNELS)
        k = tl.arange(0, SLOTS)
        of_image = ((image * DIRECTIONS + k) * channels)[:, None] + c[None, :]
        exists = (k < DIRECTIONS)[:, None] & (c < channels)[None, :]
        weight = tl.zeros((SLOTS, CHANNELS), tl.float32)
        if weights is not None:
            weight = tl.load(weights + of_image, mask=exists, other=0.0).to(tl.float32)
        total = tl.zeros((SLOTS, ROWS, CHANNELS), tl.float32)
        for turn in range(TURNS):
            row = (first + turn * ROWS + tl.arange(0, ROWS))[:, None]
            mask = (row < end) & (c < channels)[None, :]
            given = tl.full((ROWS, CHANNELS), 1.0, tl.float32)
            if gradient is not None:
                given = tl.load(gradient + row * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
            slope = given
            if z is not None:
                silu, slope = gate_of(z, row, c[None, :], mask, z_row)
                slope *= given
                given *= silu
            place = (row[None, :, :] * DIRECTIONS + k[:, None, None]) * channels + c[None, None, :]
            there = mask[None, :, :] & exists[:, None, :]
            value = tl.load(y + place, mask=there, other=0.0).to(tl.float32)
            total += value * given[None, :, :]
            if weights is not None:
                tl.store(dy + place, (weight[:, None, :] * given[None, :, :]).to(dy.dtype.element_ty), mask=there)
                if z is not None:
                    slope *= tl.sum(weight[:, None, :] * value, 0)
                    tl.store(dz + row * channels + c[None, :], slope.to(dz.dtype.element_ty), mask=mask)
        if shares is not None:
            # (parts, batch, directions, channels)
            share = part.to(tl.int64) * batch * DIRECTIONS * channels + of_image
            tl.store(shares + share, tl.sum(total, 1), mask=exists)


def plan_weigh(args: WeightedArguments, save: bool) -> Callable[[WeightedArguments], tuple[Tensor, None]]:
    parts, told = _told(args.y, args.z, ROWS)
    launch = Launcher(weigh_kernel, _grid(args.y, parts), **told)
    shape, dtype, device = args.output_shape, args.output_dtype, args.device

    def run(args: WeightedArguments) -> tuple[Tensor, None]:
        out = torch.empty(shape, dtype=dtype, device=device)
        launch(args.y.contiguous(), args.weights.contiguous(), even_rows(args.z), out)
        return out, None

    return run


def plan_weigh_backward(
    args: WeightedArguments, gradient: Tensor
) -> Callable[[WeightedArguments, Tensor], tuple[Tensor | None, ...]]:
    run = _plan_sum(args.y, args.z)

    def backward(args: WeightedArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
        dy, dz = torch.empty_like(args.y, memory_format=torch.contiguous_format), _empty_like(args.z)
        sums = run(args.y, args.weights, args.z, gradient, dy, dz, sums=True)
        return dy, sums.to(args.weights.dtype), dz

    return backward


def plan_means(args: MeanArguments, save: bool) -> Callable[[MeanArguments], tuple[Tensor, None]]:
    run, dtype, tokens = _plan_sum(args.y, args.z), args.output_dtype, args.y.shape[1]
    # A mean is no larger than what it is of, and needs no saturation.
    return lambda args: ((run(args.y, None, args.z, None, None, None, sums=True) / tokens).to(dtype), None)


def plan_means_backward(
    args: MeanArguments, gradient: Tensor
) -> Callable[[MeanArguments, Tensor], tuple[Tensor, Tensor | None]]:
    """Those of a sum weighted by the gradient, whose own gradient is one."""
    run, tokens = _plan_sum(args.y, args.z), args.y.shape[1]

    def backward(args: MeanArguments, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        dy, dz = torch.empty_like(args.y, memory_format=torch.contiguous_format), _empty_like(args.z)
        run(args.y, gradient.float() / tokens, args.z, None, dy, dz, sums=False)
        return dy, dz

    return backward


def _plan_sum(y: Tensor, z: Tensor | None) -> Callable[..., Tensor | None]:
    """(y, weights, z, gradient, dy, dz, sums) to the sums over the tokens, (batch, directions, channels) in float32."""
    batch, _, directions, channels = y.shape
    parts, told = _told(y, z, ROWS * TURNS)
    slots, device = 1 << (directions - 1).bit_length(), y.device
    launch = Launcher(sum_kernel, _grid(y, parts), batch=batch, SLOTS=slots, TURNS=TURNS, **told)

    def run(
        y: Tensor,
        weights: Tensor | None,
        z: Tensor | None,
        gradient: Tensor | None,
        dy: Tensor | None,
        dz: Tensor | None,
        sums: bool,
    ) -> Tensor | None:
        shares = None
        if sums:
            shares = torch.empty((parts, batch, directions, channels), dtype=torch.float32, device=device)
        weights, gradient = (None if tensor is None else tensor.contiguous() for tensor in (weights, gradient))
        launch(y.contiguous(), weights, even_rows(z), gradient, dy, dz, shares)
        return shares if shares is None else shares.sum(0)

    return run


def _told(y: Tensor, z: Tensor | None, tokens: int) -> tuple[int, dict[str, Any]]:
    """Parts of an image's tokens, so many for a program, and what both kernels are told."""
    parts = cdiv(y.shape[1], tokens)
    z_row = 0 if z is None else even_rows(z).stride(1)
    told = {"tokens": y.shape[1], "channels": y.shape[3], "parts": parts, "z_row": z_row, "DIRECTIONS": y.shape[2]}
    return parts, told | {"ROWS": ROWS, "CHANNELS": CHANNELS, "num_warps": WARPS}


def _grid(y: Tensor, parts: int) -> tuple[int]:
    return (y.shape[0] * parts * cdiv(y.shape[3], CHANNELS),)


def _empty_like(z: Tensor | None) -> Tensor | None:
    return None if z is None else torch.empty_like(z, memory_format=torch.contiguous_format)


def _why_not(args: WeightedArguments | MeanArguments | None) -> str | None:
    if args is not None and not args.y.numel():
        return "has nothing to do"
    return why_no_triton(*(() if args is None else args.tensors()))


BACKEND = triton_backend(plan_weigh, plan_weigh_backward, _why_not)
MEANS = triton_backend(plan_means, plan_means_backward, _why_not)
