"""Few sequences are cut into chunks that programs walk at the same time.

A chunk turns the state before it into the state behind it by a decay and an addend, h -> decay h + end, which depend
on its own steps alone. `ends_kernel` finds both for every chunk, `carry_kernel` composes them, and the kernels of
triton_kernels.py then start every chunk from the state that it receives. The gradient of the state obeys a recurrence
of the same kind, from the last step to the first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vssm_kernels.selective_scan.triton_kernels import (
    SIZES,
    STRIDES,
    aligned,
    first_row,
    in_float32,
    load_constants,
    load_rows,
    program_indices,
    softplus,
    state_lanes,
    tile_offsets,
    walk,
)


@triton.jit(do_not_specialize=SIZES + STRIDES)
def ends_kernel(
    u, delta, A, B, bias, order, ends, decays,
    directions, channels, state, steps, segment, blocks, pitch, chunk, chunks,
    u_batch, u_token, u_direction, delta_batch, delta_token, delta_direction, B_batch, B_token, B_direction,
    HAS_ORDER: tl.constexpr, HAS_BIAS: tl.constexpr, SEGMENTED: tl.constexpr, ADJOINT: tl.constexpr,
    ROW_ALIGN: tl.constexpr, STATE_ALIGN: tl.constexpr, WIDE: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """The state at each chunk's end, starting from zeros, and the decay of the state that it starts from.

    With ADJOINT the gradient of the state before the chunk, walking back, starting from zeros after it; `u` is then the
    gradient of the output and `B` is C.
    """
    channels, state = aligned(channels, ROW_ALIGN), aligned(state, STATE_ALIGN)
    b, k, j, block = program_indices(directions, chunks, blocks)
    if j == (0 if ADJOINT else chunks - 1):  # no chunk receives its end
        return
    c = block.to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N)
    rates, _, bias_row = load_constants(A, A, bias, k, c, n, channels, state, pitch, False, HAS_BIAS, VECTOR)

    u_token, delta_token = aligned(u_token, ROW_ALIGN), aligned(delta_token, ROW_ALIGN)
    u += first_row(b, k, u_batch, u_direction, ROW_ALIGN) + c
    delta += first_row(b, k, delta_batch, delta_direction, ROW_ALIGN) + c
    B += first_row(b, k, B_batch, B_direction, STATE_ALIGN)
    B_lanes, B_token, pair, pairs = state_lanes(B, B_token, state, STATE_ALIGN, BLOCK_N)
    start = (j * chunk).to(tl.int32)
    end = tl.minimum(start + chunk, steps)
    segment_start = tl.cdiv(start, segment) * segment
    groups = tl.cdiv(end - start, UNROLL)
    # The steps of a group, in the order of this walk.
    FIRST: tl.constexpr = UNROLL - 1 if ADJOINT else 0
    END: tl.constexpr = -1 if ADJOINT else UNROLL
    STRIDE: tl.constexpr = -1 if ADJOINT else 1
    if ADJOINT:
        start += (groups - 1) * UNROLL

    here = walk(order, k, start, steps, HAS_ORDER, WIDE, UNROLL)
    u_rows = load_rows(u, here, u_token, c, channels, UNROLL)
    delta_rows = load_rows(delta, here, delta_token, c, channels, UNROLL)
    B_rows = load_rows(B_lanes, here, B_token, pair, pairs, UNROLL)
    ahead = walk(order, k, start + STRIDE * UNROLL, steps, HAS_ORDER, WIDE, UNROLL)
    h = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    duration = tl.zeros((BLOCK_C,), tl.float32)  # the sum of step sizes
    for _ in range(groups):
        u_ahead = load_rows(u, ahead, u_token, c, channels, UNROLL)
        delta_ahead = load_rows(delta, ahead, delta_token, c, channels, UNROLL)
        B_ahead = load_rows(B_lanes, ahead, B_token, pair, pairs, UNROLL)
        after = walk(order, k, start + 2 * STRIDE * UNROLL, steps, HAS_ORDER, WIDE, UNROLL)
        for i in tl.static_range(FIRST, END, STRIDE):
            u_t, B_t = in_float32(u_rows[i]), in_float32(B_rows[i])
            delta_t = softplus(in_float32(delta_rows[i]) + bias_row)
            decay_t = tl.exp2(delta_t[None, :] * rates)
            if SEGMENTED:
                decay_t = tl.where((start + i) % segment == 0, 0.0, decay_t)
            if ADJOINT:
                h = decay_t * (h + B_t[:, None] * u_t[None, :])
            else:
                h = decay_t * h + (delta_t * u_t)[None, :] * B_t[:, None]
            duration += delta_t
        start += STRIDE * UNROLL
        here, ahead = ahead, after
        u_rows, delta_rows, B_rows = u_ahead, delta_ahead, B_ahead

    tile = (n < state)[:, None] & (c < channels)[None, :]
    place = ((b * chunks + j) * directions + k) * state * (pitch * VECTOR) + tile_offsets(n, c, pitch, VECTOR)
    tl.store(ends + place, h, mask=tile)
    decay = tl.exp2(tl.minimum(duration, 3e38)[None, :] * rates)  # infinity times a rate of zero would be NaN
    if SEGMENTED:
        decay = tl.where(segment_start < end, 0.0, decay)
    tl.store(decays + place, decay, mask=tile)


@triton.jit
def compose(decay, end, later_decay, later_end):
    return decay * later_decay, later_decay * end + later_end


@triton.jit(do_not_specialize=["directions", "size", "chunks"])
def carry_kernel(
    ends, decays, carried, directions, size, chunks,
    ADJOINT: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The state that each chunk starts from: the one after the chunk before it; with ADJOINT, before the next chunk.

    Buffers are (batch, chunk, direction, size).
    """
    blocks = tl.cdiv(size, BLOCK)
    sequence, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    element = (block * BLOCK + tl.arange(0, BLOCK))[None, :]
    j = tl.arange(0, CHUNKS)[:, None]
    row = directions * size
    place = sequence // directions * chunks * row + j * row + sequence % directions * size + element
    inside = (j < chunks) & (element < size)
    decay = tl.load(decays + place, mask=inside, other=1.0)
    end = tl.load(ends + place, mask=inside, other=0.0)
    _, behind = tl.associative_scan((decay, end), 0, compose, reverse=ADJOINT)
    if ADJOINT:
        tl.store(carried + place - row, behind, mask=inside & (j > 0))
        tl.store(carried + place, tl.zeros_like(behind), mask=inside & (j == chunks - 1))
    else:
        tl.store(carried + place + row, behind, mask=inside & (j < chunks - 1))
        tl.store(carried + place, tl.zeros_like(behind), mask=inside & (j == 0))
