"""The wavefront scan's kernels in Triton; how they are launched is in triton_fused.py.

A program is one warp that walks a tile of the map for some channels: a thread has all states of a channel, so sums over
states need no other thread, and what a channel shares is computed once. It goes in strips of columns, each from the
first row to the last. The states above the present row stay in registers; those on the left of the strip lie in
`across`, row by row, where each strip finds them and leaves those of its own last column. A tile finds the states above
it in `down`, column by column, and leaves those of its last row. Both hold zeros at first, which is what the map's
borders give. Rows of the next row of the map are read before the present one is computed: the compiler cannot move a
load above a store.

The backward walks the other way, from the last column to the first and from the last row up; `across` and `down` then
hold gradients of states.

Pieces, (state, channel) tiles of a block of channels, lie one after another, and their size is no constant: so Triton
does not know how they are aligned, and gives each thread one channel of every state, and not four neighbours of some.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vssm_kernels.selective_scan.triton_kernels import (
    LN_2,
    LOG2_E,
    aligned,
    in_float32,
    softplus,
    state_lanes,
    sum_over_channels,
    zero_of_each_thread,
)
from vssm_kernels.triton_math import saturate, sigmoid

NOTHING = tl.constexpr(-1e30)  # the logarithm of a weight of zero

SIZES = ["height", "width", "channels", "state", "blocks", "pitch", "piece", "rows", "strips"]
SIZES += ["diagonal", "first", "count", "batch"]
STRIDES = [f"{name}_{of}" for name in ("u", "delta", "B", "C", "dy") for of in ("batch", "token")] + [
    "delta_way",
    "B_way",
]


@triton.jit
def place_of_program(diagonal, first, count, blocks):
    """Batch, row and column of tiles, and channel block of this program. Tiles of a diagonal run at the same time."""
    program = tl.program_id(0)
    block = program % blocks
    program = program // blocks
    tile_row = first + program % count
    return (program // count).to(tl.int64), tile_row, diagonal - tile_row, block


@triton.jit
def token_at(row, column, height, width, REVERSE: tl.constexpr):
    token = row.to(tl.int64) * width + column
    return height.to(tl.int64) * width - 1 - token if REVERSE else token


@triton.jit
def inside(index, size, exists):
    """Mask of the indices below size where a position exists, else of none."""
    return index < tl.where(exists, size, 0)


@triton.jit
def load_rows(lanes, index, size, token, stride, column, width, REVERSE: tl.constexpr, COLUMNS: tl.constexpr):
    """The rows of a strip's positions in one row of the map, zeros beside the map."""
    found = ()
    for k in tl.static_range(COLUMNS):
        here = token - k if REVERSE else token + k
        mask = inside(index, size, column + k < width) if COLUMNS > 1 else index < size
        found = found + (tl.load(lanes + here * stride, mask=mask, other=0.0),)
    return found


@triton.jit
def load_steps(
    u, delta_top, delta_left, c, channels, token, u_token, delta_token, column, width,
    REVERSE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`load_rows` of u, and of the step sizes from above and from the left."""
    u_rows = load_rows(u, c, channels, token, u_token, column, width, REVERSE, COLUMNS)
    top_rows = load_rows(delta_top, c, channels, token, delta_token, column, width, REVERSE, COLUMNS)
    left_rows = load_rows(delta_left, c, channels, token, delta_token, column, width, REVERSE, COLUMNS)
    return u_rows, top_rows, left_rows


@triton.jit
def load_states(
    lanes_top, lanes_left, lanes_C, pair, pairs, C_pair, C_pairs, token, B_token, C_token, column, width,
    REVERSE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`load_rows` of both B and of C."""
    top_rows = load_rows(lanes_top, pair, pairs, token, B_token, column, width, REVERSE, COLUMNS)
    left_rows = load_rows(lanes_left, pair, pairs, token, B_token, column, width, REVERSE, COLUMNS)
    C_rows = load_rows(lanes_C, C_pair, C_pairs, token, C_token, column, width, REVERSE, COLUMNS)
    return top_rows, left_rows, C_rows


@triton.jit
def weights_at(row, column):
    """How much top and left count, and the logarithms of what their states do, to the base of two; the corner counts as
    left, where no state comes from."""
    first_row, first_column = row == 0, column == 0
    top = tl.where(first_row, 0.0, tl.where(first_column, 1.0, 0.5))
    log_top = tl.where(first_row, NOTHING, tl.where(first_column, 0.0, -1.0))
    left = tl.where(first_row, 1.0, tl.where(first_column, 0.0, 0.5))
    log_left = tl.where(first_column, NOTHING, tl.where(first_row, 0.0, -1.0))
    return top, left, log_top, log_left


@triton.jit
def load_constants(
    A, D, bias, c, n, channels, pitch, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr
):
    """A times log2(e), of top and of left, D, and both biases, of a block of channels."""
    tile = n[:, None] * pitch + c[None, :]
    inside = c < channels
    zeros = tl.zeros_like(c).to(tl.float32)
    D_row = tl.load(D + c, mask=inside, other=0.0) if HAS_D else zeros
    bias_top = tl.load(bias + c, mask=inside, other=0.0) if HAS_BIAS else zeros
    bias_left = tl.load(bias + channels + c, mask=inside, other=0.0) if HAS_BIAS else zeros
    A_top, A_left = tl.load(A + tile) * LOG2_E, tl.load(A + BLOCK_N * pitch + tile) * LOG2_E
    return A_top, A_left, D_row, bias_top, bias_left


@triton.jit
def lanes_of_states(
    B, C, b, state, channels, B_batch, B_token, B_way, C_batch, C_token,
    STATE_ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """What `load_states` takes of both B and of C of an image, and the strides from token to token."""
    zeros = zero_of_each_thread(channels, BLOCK_C) * STATE_ALIGN
    B += b * aligned(B_batch, STATE_ALIGN) + zeros
    C += b * aligned(C_batch, STATE_ALIGN) + zeros
    left, _, pair, pairs = state_lanes(B + aligned(B_way, STATE_ALIGN), B_token, state, STATE_ALIGN, BLOCK_N)
    top, B_token, _, _ = state_lanes(B, B_token, state, STATE_ALIGN, BLOCK_N)
    lanes_C, C_token, C_pair, C_pairs = state_lanes(C, C_token, state, STATE_ALIGN, BLOCK_N)
    return (top, left, lanes_C, pair, pairs, C_pair, C_pairs), B_token, C_token


@triton.jit(do_not_specialize=SIZES + STRIDES)
def forward_kernel(
    u, delta, A, B, C, D, bias, y, states, across, down,
    height, width, channels, state, blocks, pitch, piece, rows, strips, diagonal, first, count,
    u_batch, u_token, delta_batch, delta_token, delta_way, B_batch, B_token, B_way, C_batch, C_token,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, REVERSE: tl.constexpr, AGAIN: tl.constexpr,
    STATE_ALIGN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Outputs, or AGAIN for the backward the states of all positions, a piece of each (batch, row, column, block)."""
    b, tile_row, tile_column, block = place_of_program(diagonal, first, count, blocks)
    lane, n = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_N)
    c = block * BLOCK_C + lane
    state = aligned(state, STATE_ALIGN)
    A_top, A_left, D_row, bias_top, bias_left = load_constants(
        A, D, bias, c, n, channels, pitch, HAS_D, HAS_BIAS, BLOCK_N
    )
    u += b * u_batch + c
    delta += b * delta_batch + c
    delta_left = delta + delta_way
    lanes, B_token, C_token = lanes_of_states(
        B, C, b, state, channels, B_batch, B_token, B_way, C_batch, C_token, STATE_ALIGN, BLOCK_N, BLOCK_C
    )
    y += b * height * width * channels + c
    tile = block * (BLOCK_N * BLOCK_C) + n[:, None] * BLOCK_C + lane[None, :]
    states += b * height * width * piece + tile
    across += b * height * piece + tile
    down += b * width * piece + tile

    top_row = tile_row * rows
    end = tl.minimum(top_row + rows, height)
    column = tile_column * strips * COLUMNS
    for _ in range(strips):
        above = ()
        for k in tl.static_range(COLUMNS):
            above = above + (tl.load(down + tl.minimum(column + k, width - 1) * piece),)
        token = token_at(top_row, column, height, width, REVERSE)
        steps = load_steps(
            u, delta, delta_left, c, channels, token, u_token, delta_token, column, width, REVERSE, COLUMNS
        )
        of_states = load_states(*lanes, token, B_token, C_token, column, width, REVERSE, COLUMNS)
        beside = tl.load(across + top_row * piece)
        for row in range(top_row, end):
            h, below = beside, tl.minimum(row + 1, end - 1)  # behind the last row that row again, for nothing
            after = token_at(below, column, height, width, REVERSE)
            beside = tl.load(across + below * piece)
            steps_below = load_steps(
                u, delta, delta_left, c, channels, after, u_token, delta_token, column, width, REVERSE, COLUMNS
            )
            states_below = load_states(*lanes, after, B_token, C_token, column, width, REVERSE, COLUMNS)

            u_rows, top_rows, left_rows = steps
            B_top_rows, B_left_rows, C_rows = of_states
            here = ()
            for k in tl.static_range(COLUMNS):
                w_top, w_left, log_top, log_left = weights_at(row, column + k)
                u_k = in_float32(u_rows[k])
                step_top = softplus(in_float32(top_rows[k]) + bias_top)
                step_left = softplus(in_float32(left_rows[k]) + bias_left)
                added = (step_top * u_k * w_top)[None, :] * in_float32(B_top_rows[k])[:, None]
                added += (step_left * u_k * w_left)[None, :] * in_float32(B_left_rows[k])[:, None]
                added += tl.exp2(step_top[None, :] * A_top + log_top) * above[k]
                h = tl.exp2(step_left[None, :] * A_left + log_left) * h + added
                here = here + (h,)
            above = here
            for k in tl.static_range(COLUMNS):
                exists = column + k < width
                place = token - k if REVERSE else token + k
                if AGAIN:
                    here_states = states + (row * width + column + k).to(tl.int64) * piece
                    tl.store(here_states, here[k], mask=inside(tile, 2**30, exists))
                else:
                    y_k = tl.sum(here[k] * in_float32(C_rows[k])[:, None], 0) + D_row * in_float32(u_rows[k])
                    tl.store(y + place * channels, saturate(y_k, y.dtype.element_ty), mask=inside(c, channels, exists))
            tl.store(across + row * piece, h)
            token, steps, of_states = after, steps_below, states_below
        for k in tl.static_range(COLUMNS):
            tl.store(down + (column + k) * piece, above[k], mask=inside(tile, 2**30, column + k < width))
        tl.debug_barrier()  # the next strip reads what other threads may have written
        column += COLUMNS


@triton.jit(do_not_specialize=SIZES + STRIDES)
def backward_kernel(
    u, delta, A, B, C, D, bias, states, across, down, dy, du, ddelta, dBC, shares,
    height, width, channels, state, blocks, pitch, piece, rows, strips, diagonal, first, count, batch,
    u_batch, u_token, delta_batch, delta_token, delta_way, B_batch, B_token, B_way, C_batch, C_token,
    dy_batch, dy_token,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, REVERSE: tl.constexpr, STATE_ALIGN: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients. dBC are those of B from above, B from the left and C, sums over this program's channels, (block, batch,
    row, column, 3, state); `shares` are every tile's parts of the gradients of A, (way, state, channel), D, and both
    biases, in this order."""
    b, tile_row, tile_column, block = place_of_program(diagonal, first, count, blocks)
    lane, n = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_N)
    c = block * BLOCK_C + lane
    state = aligned(state, STATE_ALIGN)
    A_top, A_left, D_row, bias_top, bias_left = load_constants(
        A, D, bias, c, n, channels, pitch, HAS_D, HAS_BIAS, BLOCK_N
    )
    tokens = height.to(tl.int64) * width
    u += b * u_batch + c
    delta += b * delta_batch + c
    delta_left = delta + delta_way
    dy += b * dy_batch + c
    lanes, B_token, C_token = lanes_of_states(
        B, C, b, state, channels, B_batch, B_token, B_way, C_batch, C_token, STATE_ALIGN, BLOCK_N, BLOCK_C
    )
    du += b * tokens * channels + c
    ddelta += b * tokens * 2 * channels + c
    one, two = tl.arange(0, 2)[None, :, None], tl.arange(0, 2)[None, None, :]
    dBC += (block * batch + b) * tokens * 3 * BLOCK_N + n[:, None, None] + (one + 2 * two) * BLOCK_N
    tile = block * (BLOCK_N * BLOCK_C) + n[:, None] * BLOCK_C + lane[None, :]
    states += b * tokens * piece + tile
    across += b * height * piece + tile
    down += b * width * piece + tile

    top_row = tile_row * rows
    end = tl.minimum(top_row + rows, height)
    last = tl.minimum((tile_column + 1) * strips, width)
    dA_top, dA_left = tl.zeros((BLOCK_N, BLOCK_C), tl.float32), tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    dD_row, dbias_top = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    dbias_left = tl.zeros((BLOCK_C,), tl.float32)
    column = last - 1
    for _ in range(tile_column * strips, last):
        to_left = tl.where(column > 0, 1, 0)  # in the first column, and the first row, its weight is zero
        place = ((end - 1) * width + column).to(tl.int64)
        token = token_at(end - 1, column, height, width, REVERSE)
        dh = tl.load(down + column * piece)
        here = tl.load(states + place * piece)
        right = tl.load(across + (end - 1) * piece)
        steps = load_steps(u, delta, delta_left, c, channels, token, u_token, delta_token, column, width, REVERSE, 1)
        dy_row = tl.load(dy + token * dy_token, mask=c < channels, other=0.0)
        row = end - 1
        for _ in range(top_row, end):
            of_states = load_states(*lanes, token, B_token, C_token, column, width, REVERSE, 1)
            above = tl.load(states + (place - tl.where(row > 0, width, 0)) * piece)
            beside = tl.load(states + (place - to_left) * piece)
            next_row = tl.maximum(row - 1, top_row)  # behind the last row that row again, for nothing
            before = token_at(next_row, column, height, width, REVERSE)
            right_next = tl.load(across + next_row * piece)
            steps_next = load_steps(
                u, delta, delta_left, c, channels, before, u_token, delta_token, column, width, REVERSE, 1
            )
            dy_next = tl.load(dy + before * dy_token, mask=c < channels, other=0.0)

            w_top, w_left, log_top, log_left = weights_at(row, column)
            u_k, dy_k = in_float32(steps[0][0]), in_float32(dy_row)
            raw_top, raw_left = in_float32(steps[1][0]) + bias_top, in_float32(steps[2][0]) + bias_left
            step_top, step_left = softplus(raw_top), softplus(raw_left)
            B_top, B_left = in_float32(of_states[0][0])[:, None], in_float32(of_states[1][0])[:, None]
            dh += right + in_float32(of_states[2][0])[:, None] * dy_k[None, :]
            dC_row = sum_over_channels(here * dy_k[None, :], PARTS, 1, BLOCK_N, BLOCK_C)
            dB_top = sum_over_channels(dh * (step_top * u_k * w_top)[None, :], PARTS, 1, BLOCK_N, BLOCK_C)
            dB_left = sum_over_channels(dh * (step_left * u_k * w_left)[None, :], PARTS, 1, BLOCK_N, BLOCK_C)
            through_top = tl.sum(dh * B_top, 0) * w_top
            through_left = tl.sum(dh * B_left, 0) * w_left
            dh_left = tl.exp2(step_left[None, :] * A_left + log_left) * dh
            dh *= tl.exp2(step_top[None, :] * A_top + log_top)
            decay_top, decay_left = dh * above, dh_left * beside
            dA_top += decay_top * step_top[None, :]
            dA_left += decay_left * step_left[None, :]
            dt_row = tl.sum(decay_top * A_top, 0) * LN_2 + u_k * through_top
            dl_row = tl.sum(decay_left * A_left, 0) * LN_2 + u_k * through_left
            dt_row *= sigmoid(raw_top)  # the slope of softplus
            dl_row *= sigmoid(raw_left)
            du_row = step_top * through_top + step_left * through_left + D_row * dy_k
            dD_row += dy_k * u_k
            dbias_top += dt_row
            dbias_left += dl_row
            tl.store(du + token * channels, du_row.to(du.dtype.element_ty), mask=c < channels)
            to_delta = ddelta + token * (2 * channels)
            tl.store(to_delta, dt_row.to(ddelta.dtype.element_ty), mask=c < channels)
            tl.store(to_delta + channels, dl_row.to(ddelta.dtype.element_ty), mask=c < channels)
            # Together: each store of a sum alone would go through shared memory, and wait.
            sums = tl.join(tl.join(dB_top, dB_left), tl.join(dC_row, tl.zeros_like(dC_row)))
            tl.store(dBC + token * (3 * BLOCK_N), sums, mask=n[:, None, None] + (one + 2 * two) * BLOCK_N < 3 * BLOCK_N)
            tl.store(across + row * piece, dh_left)
            here, right, token, steps, dy_row = above, right_next, before, steps_next, dy_next
            place -= width
            row -= 1
        tl.store(down + column * piece, dh)
        tl.debug_barrier()
        column -= 1

    share = (b * tl.cdiv(height, rows) + tile_row) * tl.cdiv(width, strips) + tile_column
    shares += share * (2 * piece + 3 * pitch) + c
    tl.store(shares + n[:, None] * pitch, dA_top)
    tl.store(shares + (BLOCK_N + n[:, None]) * pitch, dA_left)
    shares += 2 * piece
    tl.store(shares, dD_row)
    tl.store(shares + pitch, dbias_top)
    tl.store(shares + 2 * pitch, dbias_left)
