"""The wavefront scan's kernels in Triton; how they are launched is in triton_fused.py.

A program walks a tile of the map for some channels, in strips of COLUMNS columns, each from its first row to its last.
The states above the present row stay in registers, a (channel, state) piece for each column of the strip; those on the
left of the strip lie in `across`, row by row, where each strip finds them and leaves those of its own last column. A
tile finds the states above it in `down`, column by column, and leaves those of its last row. Rows of the next row of
the map are read before the present one is computed: the compiler cannot move a load above a store.

The backward walks the other way, from the last strip to the first and from the last row up; `across` and `down` then
hold gradients of states.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vssm_kernels.selective_scan.triton_kernels import LN_2, LOG2_E, aligned, in_float32, softplus, state_lanes
from vssm_kernels.triton_math import saturate, sigmoid

NOTHING = tl.constexpr(-1e30)  # the logarithm of a weight of zero

SIZES = ["height", "width", "channels", "state", "blocks", "rows", "strips", "diagonal", "first", "count", "batch"]
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
def whole(tile, exists):
    """Mask of a whole (channel, state) piece, or of nothing; written so, Triton knows that it is one or the other."""
    return tile < tl.where(exists, 2**30, 0)


@triton.jit
def load_rows(
    lanes, index, size, token, stride, exists, column, width, REVERSE: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """The rows of a strip's positions in one row of the map, zeros beside the map and where that row does not exist."""
    found = ()
    for k in tl.static_range(COLUMNS):
        here = token - k if REVERSE else token + k
        mask = inside(index, size, exists & (column + k < width))
        found = found + (tl.load(lanes + here * stride, mask=mask, other=0.0),)
    return found


@triton.jit
def load_inputs(
    u, delta_top, delta_left, B_top, B_left, c, channels, pair, pairs, token, u_token, delta_token, B_token,
    exists, column, width, REVERSE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`load_rows` of u, of the step sizes from above and from the left, and of both B."""
    u_rows = load_rows(u, c, channels, token, u_token, exists, column, width, REVERSE, COLUMNS)
    top_rows = load_rows(delta_top, c, channels, token, delta_token, exists, column, width, REVERSE, COLUMNS)
    left_rows = load_rows(delta_left, c, channels, token, delta_token, exists, column, width, REVERSE, COLUMNS)
    B_top_rows = load_rows(B_top, pair, pairs, token, B_token, exists, column, width, REVERSE, COLUMNS)
    B_left_rows = load_rows(B_left, pair, pairs, token, B_token, exists, column, width, REVERSE, COLUMNS)
    return u_rows, top_rows, left_rows, B_top_rows, B_left_rows


@triton.jit
def load_states(states, place, piece, tile, exists, column, width, COLUMNS: tl.constexpr):
    """The states of a strip's positions in one row of the map, zeros beside the map and where the row is none."""
    found = ()
    for k in tl.static_range(COLUMNS):
        mask = whole(tile, inside(column + k, width, exists))
        found = found + (tl.load(states + (place + k) * piece, mask=mask, other=0.0),)
    return found


@triton.jit
def store_sums(to, sums, n, exists, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr):
    """Store one number for each state, as the first row of a (channel, state) piece: from the registers they lie in."""
    first = tl.arange(0, BLOCK_C)[:, None] == 0
    mask = tl.where(first, tl.where(exists, 1, 0), 0) > 0
    zeros = tl.zeros((BLOCK_C, BLOCK_N), tl.int32)
    tl.store(to + n[None, :] + zeros, tl.broadcast_to(sums[None, :], (BLOCK_C, BLOCK_N)), mask=mask)


@triton.jit
def weights_at(row, column):
    """How much top and left count, and the logarithms of this, to the base of two."""
    first_row, first_column = row == 0, column == 0
    top = tl.where(first_row, 0.0, tl.where(first_column, 1.0, 0.5))
    log_top = tl.where(first_row, NOTHING, tl.where(first_column, 0.0, -1.0))
    left = tl.where(first_row, 1.0, tl.where(first_column, 0.0, 0.5))
    log_left = tl.where(first_row, 0.0, tl.where(first_column, NOTHING, -1.0))
    return top, left, log_top, log_left


@triton.jit
def load_constants(
    A, D, bias, c, n, channels, pitch, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr
):
    """A times log2(e), of top and of left, D, and both biases, of a block of channels."""
    tile = c[:, None] * BLOCK_N + n[None, :]
    inside = c < channels
    zeros = tl.zeros_like(c).to(tl.float32)
    D_row = tl.load(D + c, mask=inside, other=0.0) if HAS_D else zeros
    bias_top = tl.load(bias + c, mask=inside, other=0.0) if HAS_BIAS else zeros
    bias_left = tl.load(bias + channels + c, mask=inside, other=0.0) if HAS_BIAS else zeros
    A_top, A_left = tl.load(A + tile) * LOG2_E, tl.load(A + pitch * BLOCK_N + tile) * LOG2_E
    return A_top, A_left, D_row, bias_top, bias_left


@triton.jit(do_not_specialize=SIZES + STRIDES)
def forward_kernel(
    u, delta, A, B, C, D, bias, y, states, across, down,
    height, width, channels, state, blocks, rows, strips, diagonal, first, count,
    u_batch, u_token, delta_batch, delta_token, delta_way, B_batch, B_token, B_way, C_batch, C_token,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, REVERSE: tl.constexpr, AGAIN: tl.constexpr,
    STATE_ALIGN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Outputs, or AGAIN for the backward the states of all positions, (batch, row, column, channel, state)."""
    b, tile_row, tile_column, block = place_of_program(diagonal, first, count, blocks)
    pitch = blocks * BLOCK_C  # channels of the buffers of states
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N)
    state = aligned(state, STATE_ALIGN)
    tile = c[:, None] * BLOCK_N + n[None, :]
    A_top, A_left, D_row, bias_top, bias_left = load_constants(
        A, D, bias, c, n, channels, pitch, HAS_D, HAS_BIAS, BLOCK_N
    )
    u += b * u_batch + c
    delta += b * delta_batch + c
    delta_left = delta + delta_way
    B += b * aligned(B_batch, STATE_ALIGN)
    C += b * aligned(C_batch, STATE_ALIGN)
    B_left, _, pair, pairs = state_lanes(B + aligned(B_way, STATE_ALIGN), B_token, state, STATE_ALIGN, BLOCK_N)
    B_top, B_token, _, _ = state_lanes(B, B_token, state, STATE_ALIGN, BLOCK_N)
    C, C_token, C_pair, C_pairs = state_lanes(C, C_token, state, STATE_ALIGN, BLOCK_N)
    y += b * height * width * channels + c
    piece = pitch * BLOCK_N  # numbers of a position
    states += b * height * width * piece + tile
    across += b * height * piece + tile
    down += b * width * piece + tile

    top_row = tile_row * rows
    end = tl.minimum(top_row + rows, height)
    column = tile_column * strips * COLUMNS
    for _ in range(strips):
        above = load_states(down, column, piece, tile, top_row > 0, column, width, COLUMNS)
        token = token_at(top_row, column, height, width, REVERSE)
        inputs = load_inputs(
            u, delta, delta_left, B_top, B_left, c, channels, pair, pairs, token, u_token, delta_token, B_token,
            True, column, width, REVERSE, COLUMNS,
        )  # fmt: skip
        C_rows = load_rows(C, C_pair, C_pairs, token, C_token, True, column, width, REVERSE, COLUMNS)
        beside = tl.load(across + top_row * piece, mask=whole(tile, column > 0), other=0.0)
        row = top_row
        for _ in range(top_row, end):
            h, below = beside, row + 1 < end
            beside = tl.load(across + (row + 1) * piece, mask=whole(tile, inside(row + 1, end, column > 0)), other=0.0)
            after = token_at(row + 1, column, height, width, REVERSE)
            inputs_below = load_inputs(
                u, delta, delta_left, B_top, B_left, c, channels, pair, pairs, after, u_token, delta_token, B_token,
                below, column, width, REVERSE, COLUMNS,
            )  # fmt: skip
            C_below = load_rows(C, C_pair, C_pairs, after, C_token, below, column, width, REVERSE, COLUMNS)

            u_rows, top_rows, left_rows, B_top_rows, B_left_rows = inputs
            here = ()
            for k in tl.static_range(COLUMNS):
                w_top, w_left, log_top, log_left = weights_at(row, column + k)
                u_k = in_float32(u_rows[k])
                step_top = softplus(in_float32(top_rows[k]) + bias_top)
                step_left = softplus(in_float32(left_rows[k]) + bias_left)
                h = tl.exp2(step_left[:, None] * A_left + log_left) * h
                h += tl.exp2(step_top[:, None] * A_top + log_top) * above[k]
                h += (step_top * u_k * w_top)[:, None] * in_float32(B_top_rows[k])[None, :]
                h += (step_left * u_k * w_left)[:, None] * in_float32(B_left_rows[k])[None, :]
                here = here + (h,)
            above = here
            for k in tl.static_range(COLUMNS):
                exists = column + k < width
                place = token - k if REVERSE else token + k
                if AGAIN:
                    here_states = states + (row * width + column + k).to(tl.int64) * piece
                    tl.store(here_states, here[k], mask=whole(tile, exists))
                else:
                    y_k = tl.sum(here[k] * in_float32(C_rows[k])[None, :], 1) + D_row * in_float32(u_rows[k])
                    tl.store(y + place * channels, saturate(y_k, y.dtype.element_ty), mask=inside(c, channels, exists))
            tl.store(across + row * piece, h)
            row += 1
            token, inputs, C_rows = after, inputs_below, C_below
        for k in tl.static_range(COLUMNS):
            tl.store(down + (column + k) * piece, above[k], mask=whole(tile, column + k < width))
        tl.debug_barrier()  # the next strip reads what other threads may have written
        column += COLUMNS


@triton.jit(do_not_specialize=SIZES + STRIDES)
def backward_kernel(
    u, delta, A, B, C, D, bias, states, across, down, dy, du, ddelta, dB, dC, shares,
    height, width, channels, state, blocks, rows, strips, diagonal, first, count, batch,
    u_batch, u_token, delta_batch, delta_token, delta_way, B_batch, B_token, B_way, C_batch, C_token,
    dy_batch, dy_token,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, REVERSE: tl.constexpr, STATE_ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients. dB and dC are sums over this program's channels, (block, batch, row, column[, way], state); `shares`
    are every tile's parts of the gradients of A, (way, channel, state), D, and both biases, in this order."""
    b, tile_row, tile_column, block = place_of_program(diagonal, first, count, blocks)
    pitch = blocks * BLOCK_C
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N)
    state = aligned(state, STATE_ALIGN)
    tile = c[:, None] * BLOCK_N + n[None, :]
    A_top, A_left, D_row, bias_top, bias_left = load_constants(
        A, D, bias, c, n, channels, pitch, HAS_D, HAS_BIAS, BLOCK_N
    )
    tokens = height.to(tl.int64) * width
    u += b * u_batch + c
    delta += b * delta_batch + c
    delta_left = delta + delta_way
    dy += b * dy_batch + c
    B += b * aligned(B_batch, STATE_ALIGN)
    C += b * aligned(C_batch, STATE_ALIGN)
    B_left, _, pair, pairs = state_lanes(B + aligned(B_way, STATE_ALIGN), B_token, state, STATE_ALIGN, BLOCK_N)
    B_top, B_token, _, _ = state_lanes(B, B_token, state, STATE_ALIGN, BLOCK_N)
    C, C_token, C_pair, C_pairs = state_lanes(C, C_token, state, STATE_ALIGN, BLOCK_N)
    du += b * tokens * channels + c
    ddelta += b * tokens * 2 * channels + c
    dB += (block * batch + b) * tokens * 2 * BLOCK_N
    dC += (block * batch + b) * tokens * BLOCK_N
    piece = pitch * BLOCK_N
    states += b * tokens * piece + tile
    across += b * height * piece + tile
    down += b * width * piece + tile

    top_row = tile_row * rows
    end = tl.minimum(top_row + rows, height)
    columns = tl.cdiv(width, COLUMNS)
    last = tl.minimum((tile_column + 1) * strips, columns)
    dA_top, dA_left = tl.zeros((BLOCK_C, BLOCK_N), tl.float32), tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    dD_row, dbias_top = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    dbias_left = tl.zeros((BLOCK_C,), tl.float32)
    column = (last - 1) * COLUMNS
    for _ in range(tile_column * strips, last):
        place = ((end - 1) * width + column).to(tl.int64)
        token = token_at(end - 1, column, height, width, REVERSE)
        here = load_states(states, place, piece, tile, True, column, width, COLUMNS)
        below = load_states(down, column, piece, tile, end < height, column, width, COLUMNS)
        above = load_states(states, place - width, piece, tile, end > 1, column, width, COLUMNS)
        beside = tl.load(states + (place - 1) * piece, mask=whole(tile, column > 0), other=0.0)
        right = tl.load(across + (end - 1) * piece, mask=whole(tile, column + COLUMNS < width), other=0.0)
        inputs = load_inputs(
            u, delta, delta_left, B_top, B_left, c, channels, pair, pairs, token, u_token, delta_token, B_token,
            True, column, width, REVERSE, COLUMNS,
        )  # fmt: skip
        C_rows = load_rows(C, C_pair, C_pairs, token, C_token, True, column, width, REVERSE, COLUMNS)
        dy_rows = load_rows(dy, c, channels, token, dy_token, True, column, width, REVERSE, COLUMNS)
        row = end - 1
        for _ in range(top_row, end):
            dh_left, exists = right, row > top_row
            place -= width
            before = token_at(row - 1, column, height, width, REVERSE)
            above_next = load_states(
                states, place - width, piece, tile, (row > 1) & (row > top_row), column, width, COLUMNS
            )
            beside_next = tl.load(
                states + (place - 1) * piece, mask=whole(tile, (column > 0) & (row > top_row)), other=0.0
            )
            right = tl.load(
                across + (row - 1) * piece, mask=whole(tile, (column + COLUMNS < width) & (row > top_row)), other=0.0
            )
            inputs_next = load_inputs(
                u, delta, delta_left, B_top, B_left, c, channels, pair, pairs, before, u_token, delta_token, B_token,
                exists, column, width, REVERSE, COLUMNS,
            )  # fmt: skip
            C_next = load_rows(C, C_pair, C_pairs, before, C_token, exists, column, width, REVERSE, COLUMNS)
            dy_next = load_rows(dy, c, channels, before, dy_token, exists, column, width, REVERSE, COLUMNS)

            u_rows, top_rows, left_rows, B_top_rows, B_left_rows = inputs
            handed = ()
            for k in tl.static_range(COLUMNS - 1, -1, -1):
                exists = column + k < width
                w_top, w_left, log_top, log_left = weights_at(row, column + k)
                u_k, dy_k = in_float32(u_rows[k]), in_float32(dy_rows[k])
                raw_top, raw_left = in_float32(top_rows[k]) + bias_top, in_float32(left_rows[k]) + bias_left
                step_top, step_left = softplus(raw_top), softplus(raw_left)
                B_t, B_l = in_float32(B_top_rows[k]), in_float32(B_left_rows[k])
                dh = below[k] + dh_left + in_float32(C_rows[k])[None, :] * dy_k[:, None]
                dC_k = tl.sum(here[k] * dy_k[:, None], 0)
                dBt_k = tl.sum(dh * (step_top * u_k * w_top)[:, None], 0)
                dBl_k = tl.sum(dh * (step_left * u_k * w_left)[:, None], 0)
                through_top = tl.sum(dh * B_t[None, :], 1) * w_top
                through_left = tl.sum(dh * B_l[None, :], 1) * w_left
                dh_left = tl.exp2(step_left[:, None] * A_left + log_left) * dh
                dh *= tl.exp2(step_top[:, None] * A_top + log_top)
                handed = (dh,) + handed
                decay_top = dh * above[k]
                if k == 0:
                    decay_left = dh_left * beside
                else:
                    decay_left = dh_left * here[k - 1]
                dA_top += decay_top * step_top[:, None]
                dA_left += decay_left * step_left[:, None]
                dt_k = tl.sum(decay_top * A_top, 1) * LN_2 + u_k * through_top
                dl_k = tl.sum(decay_left * A_left, 1) * LN_2 + u_k * through_left
                dt_k *= sigmoid(raw_top)  # the slope of softplus
                dl_k *= sigmoid(raw_left)
                du_k = step_top * through_top + step_left * through_left + D_row * dy_k
                dD_row += dy_k * u_k
                dt_k, dl_k = tl.where(exists, dt_k, 0.0), tl.where(exists, dl_k, 0.0)
                dbias_top += dt_k
                dbias_left += dl_k
                at = token - k if REVERSE else token + k
                tl.store(du + at * channels, du_k.to(du.dtype.element_ty), mask=inside(c, channels, exists))
                tl.store(
                    ddelta + at * (2 * channels), dt_k.to(ddelta.dtype.element_ty), mask=inside(c, channels, exists)
                )
                tl.store(
                    ddelta + at * (2 * channels) + channels,
                    dl_k.to(ddelta.dtype.element_ty),
                    mask=inside(c, channels, exists),
                )
                store_sums(dB + at * (2 * BLOCK_N), dBt_k, n, exists, BLOCK_C, BLOCK_N)
                store_sums(dB + at * (2 * BLOCK_N) + BLOCK_N, dBl_k, n, exists, BLOCK_C, BLOCK_N)
                store_sums(dC + at * BLOCK_N, dC_k, n, exists, BLOCK_C, BLOCK_N)
            tl.store(across + row * piece, dh_left)
            below, here, above, beside = handed, above, above_next, beside_next
            token, inputs, C_rows, dy_rows = before, inputs_next, C_next, dy_next
            row -= 1
        for k in tl.static_range(COLUMNS):
            tl.store(down + (column + k) * piece, below[k], mask=whole(tile, column + k < width))
        tl.debug_barrier()
        column -= COLUMNS

    tile_rows, tile_columns = tl.cdiv(height, rows), tl.cdiv(columns, strips)
    share = (b * tile_rows + tile_row) * tile_columns + tile_column
    shares += share * (2 * piece + 3 * pitch)
    tl.store(shares + tile, dA_top)
    tl.store(shares + piece + tile, dA_left)
    tl.store(shares + 2 * piece + c, dD_row)
    tl.store(shares + 2 * piece + pitch + c, dbias_top)
    tl.store(shares + 2 * piece + 2 * pitch + c, dbias_left)
