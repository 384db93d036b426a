"""The readout of states on a GPU in Triton: one pass over memory each way.

A program has whole rows of channels, so that it sums the gradient of C itself. That of D is summed over tokens: each
program of the backward takes rows in a fixed pattern and adds up its share, so two runs are bit-equal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vssm_kernels.gpu import Launcher, cdiv, triton_backend, why_no_triton
from vssm_kernels.readout.arguments import ReadoutArguments
from vssm_kernels.shares import programs_of, shares_launcher, tile_of_rows

try:
    import triton
    import triton.language as tl

    from vssm_kernels.triton_math import saturate
except ImportError:  # why_no_triton reports it
    triton = None

if triton is not None:

    @triton.jit
    def sum_of_directions(D, c, exists, DIRECTIONS: tl.constexpr, CHANNELS: tl.constexpr):
        total = tl.load(D + c, mask=exists, other=0.0).to(tl.float32)
        for k in tl.static_range(1, DIRECTIONS):
            total += tl.load(D + k * CHANNELS + c, mask=exists, other=0.0).to(tl.float32)
        return total[None, :]

    @triton.jit
    def place_of_rows(tile, rows, tokens, C, c_batch, c_token, DIRECTIONS: tl.constexpr, ROWS: tl.constexpr):
        """Rows of tokens, which of them exist, where each begins among the states' rows, and its numbers in C."""
        row = tile * ROWS + tl.arange(0, ROWS)
        image = row // tokens
        state_row = row + image * (DIRECTIONS - 1) * tokens
        return row[:, None], row < rows, state_row[:, None], C + image * c_batch + row % tokens * c_token

    @triton.jit(do_not_specialize=["rows", "tokens"])
    def read_kernel(
        states, C, D, u, y, rows, tokens, c_batch, c_token, c_direction,
        DIRECTIONS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr,
    ):  # fmt: skip
        c = tl.arange(0, BLOCK_C)
        exists = c < CHANNELS
        tile = tl.program_id(0).to(tl.int64)
        row, there, state_row, C = place_of_rows(tile, rows, tokens, C, c_batch, c_token, DIRECTIONS, ROWS)
        mask = there[:, None] & exists[None, :]
        total = tl.load(u + row * CHANNELS + c[None, :], mask=mask, other=0.0).to(tl.float32)
        total *= sum_of_directions(D, c, exists, DIRECTIONS, CHANNELS)
        for k in tl.static_range(DIRECTIONS):
            state = tl.load(states + (state_row + k * tokens) * CHANNELS + c[None, :], mask=mask, other=0.0)
            read_by = tl.load(C + k * c_direction, mask=there, other=0.0)
            total += state.to(tl.float32) * read_by.to(tl.float32)[:, None]
        tl.store(y + row * CHANNELS + c[None, :], saturate(total, y.dtype.element_ty), mask=mask)

    @triton.jit(do_not_specialize=["rows", "tokens", "turns"])
    def backward_kernel(
        dy, states, C, D, u, dstates, dC, du, shares, rows, tokens, turns, c_batch, c_token, c_direction,
        DIRECTIONS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr,
    ):  # fmt: skip
        c = tl.arange(0, BLOCK_C)
        exists = c < CHANNELS
        skip = sum_of_directions(D, c, exists, DIRECTIONS, CHANNELS)
        dD = tl.zeros((ROWS, BLOCK_C), tl.float32)
        program = tl.program_id(0).to(tl.int64)
        for turn in range(turns):
            tile = turn * tl.num_programs(0) + program
            row, there, state_row, read_by = place_of_rows(tile, rows, tokens, C, c_batch, c_token, DIRECTIONS, ROWS)
            mask = there[:, None] & exists[None, :]
            place = row * CHANNELS + c[None, :]
            gradient = tl.load(dy + place, mask=mask, other=0.0).to(tl.float32)
            dD += gradient * tl.load(u + place, mask=mask, other=0.0).to(tl.float32)
            tl.store(du + place, (gradient * skip).to(du.dtype.element_ty), mask=mask)
            for k in tl.static_range(DIRECTIONS):
                place = (state_row + k * tokens) * CHANNELS + c[None, :]
                state = tl.load(states + place, mask=mask, other=0.0).to(tl.float32)
                sums = tl.sum(gradient * state, 1)[:, None]
                tl.store(dC + row * DIRECTIONS + k, sums.to(dC.dtype.element_ty), mask=there[:, None])
                factor = tl.load(read_by + k * c_direction, mask=there, other=0.0).to(tl.float32)
                tl.store(dstates + place, (gradient * factor[:, None]).to(dstates.dtype.element_ty), mask=mask)
        tl.store(shares + program * CHANNELS + c, tl.sum(dD, 0), mask=exists)


def plan_read(args: ReadoutArguments, save: bool) -> Callable[[ReadoutArguments], tuple[Tensor, None]]:
    tiles, told = _told(args)
    launch = Launcher(read_kernel, (tiles,), **told)

    def run(args: ReadoutArguments) -> tuple[Tensor, None]:
        states, C, D, u = args
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        launch(states.contiguous(), C, D.contiguous(), u.contiguous(), y)
        return y, None

    return run


def plan_read_backward(
    args: ReadoutArguments, gradient: Tensor
) -> Callable[[ReadoutArguments, Tensor], tuple[Tensor, ...]]:
    tiles, told = _told(args)
    channels, device = args.u.shape[-1], args.device
    programs, turns = programs_of(tiles)
    launch = Launcher(backward_kernel, (programs,), turns=turns, **told)
    sum_shares = shares_launcher(programs, channels, channels)

    def run(args: ReadoutArguments, gradient: Tensor) -> tuple[Tensor, ...]:
        states, C, D, u = args
        dstates, dC, du = (torch.empty_like(each, memory_format=torch.contiguous_format) for each in (states, C, u))
        shares = torch.empty((programs, channels), dtype=torch.float32, device=device)
        launch(gradient.contiguous(), states.contiguous(), C, D.contiguous(), u.contiguous(), dstates, dC, du, shares)
        dD = torch.empty(channels, dtype=D.dtype, device=device)
        sum_shares(shares, dD, None, None)
        return dstates, dC, dD.expand(D.shape), du

    return run


def _told(args: ReadoutArguments) -> tuple[int, dict[str, int]]:
    """Tiles of rows, and what both kernels are told."""
    batch, directions, tokens, channels = args.states.shape
    rows, tile = batch * tokens, tile_of_rows(channels)
    c_batch, c_token, c_direction = args.C.stride()
    told = {"rows": rows, "tokens": tokens, "c_batch": c_batch, "c_token": c_token, "c_direction": c_direction}
    return cdiv(rows, tile["ROWS"]), {**told, "DIRECTIONS": directions, **tile}


def _why_not(args: ReadoutArguments | None) -> str | None:
    if args is not None and not args.states.numel():
        return "has nothing to do"
    return why_no_triton(*(() if args is None else args.tensors()))


BACKEND = triton_backend(plan_read, plan_read_backward, _why_not)
