"""The selective scan's kernels in Triton; how they are launched is in triton_fused.py.

A program holds its states as one (state, channels) tile of registers and is serial over the steps. It goes in groups
of UNROLL steps and reads the rows of the next group, and the tokens of the one after, before it computes the present
one: the compiler cannot move a load above a store, so loads that should be in flight together stand together.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vssm_kernels.triton_math import saturate, sigmoid

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

# Sizes and strides are not compiled in, so that all stages of a model share one kernel: ROW_ALIGN and STATE_ALIGN tell
# the compiler what it must know of them for vector accesses.
SIZES = [
    "tokens",
    "batch",
    "directions",
    "channels",
    "state",
    "steps",
    "segment",
    "blocks",
    "pitch",
    "groups",
    "units",
    "unit_size",
    "chunk",
    "chunks",
]
STRIDES = [f"{name}_{of}" for name in ("u", "delta", "B", "C", "dy") for of in ("batch", "token", "direction")]


@triton.jit
def softplus(x):
    """log(1 + exp(x)), relative error below 4e-7 for very negative x too, where delta is small.

    max(x, 0) + log1p(e) with e = exp(-|x|) in 0 to 1, where log1p(e) / e is a polynomial fitted to the relative error.
    """
    e = tl.exp2(-tl.abs(x) * LOG2_E)
    p = e * -0.008539168164134026 + 0.04408948868513107
    p = e * p - 0.1076815202832222
    p = e * p + 0.17745228111743927
    p = e * p - 0.24495458602905273
    p = e * p + 0.33275479078292847
    p = e * p - 0.4999740421772003
    p = e * p + 0.9999998211860657
    return e * p + tl.maximum(x, 0.0)


@triton.jit
def walk(order, k, start, steps, HAS_ORDER: tl.constexpr, WIDE: tl.constexpr, UNROLL: tl.constexpr):
    """The tokens of UNROLL steps, -1 at an empty step and before and beyond the sequence."""
    tokens = ()
    for i in tl.static_range(UNROLL):
        step = start + i
        exists = (step >= 0) & (step < steps)
        if HAS_ORDER:
            token = tl.load(order + k * steps + step, mask=exists, other=-1)
        else:
            token = tl.where(exists, step, -1)
        tokens = tokens + (token.to(tl.int64) if WIDE else token,)
    return tokens


@triton.jit
def inside(index, size, token):
    """Mask of the indices below size, none at an empty step: there nothing is read or written."""
    return index < tl.where(token >= 0, size, 0)


@triton.jit
def load_rows(lanes, tokens, token_stride, index, size, UNROLL: tl.constexpr):
    """The rows of a group's tokens, for `in_float32`; `lanes` points to the first token's row, element by element."""
    rows = ()
    for i in tl.static_range(UNROLL):
        mask = inside(index, size, tokens[i])
        rows = rows + (tl.load(lanes + tokens[i] * token_stride, mask=mask, other=0.0),)
    return rows


@triton.jit
def state_lanes(row, token_stride, state, ALIGN: tl.constexpr, BLOCK_N: tl.constexpr):
    """What `load_rows` takes of B or C: lanes, token stride, index and size.

    Where rows start at even places, two bfloat16 are read as one integer. They stay in half as many registers until
    they are needed, and then take one instruction each instead of one or two.
    """
    if ALIGN % 2 == 0 and row.dtype.element_ty == tl.bfloat16:
        pair = tl.arange(0, BLOCK_N // 2)
        return row.to(tl.pointer_type(tl.int32)) + pair, token_stride // ALIGN * (ALIGN // 2), pair, state // 2
    else:
        n = tl.arange(0, BLOCK_N)
        return row + n, aligned(token_stride, ALIGN), n, state


@triton.jit
def in_float32(row):
    """A row that `load_rows` returned. Written with integers, bfloat16 takes fewer instructions than by conversion."""
    if row.dtype == tl.int32:
        return tl.interleave(first_of(row), second_of(row))
    elif row.dtype == tl.bfloat16:
        return (row.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return row.to(tl.float32)


@triton.jit
def first_of(pair):
    """The first of two bfloat16 in an integer, in float32."""
    return (pair << 16).to(tl.float32, bitcast=True)


@triton.jit
def second_of(pair):
    return (pair & -65536).to(tl.float32, bitcast=True)


@triton.jit
def beside_lanes(row, token_stride, n, channels, BLOCK_C: tl.constexpr):
    """Lanes and token stride of B and C BESIDE each other: of one state of bfloat16 each, as one integer."""
    row = row.to(tl.pointer_type(tl.int32)) + zero_of_each_thread(channels, BLOCK_C)
    return row + n, token_stride // 2


@triton.jit
def B_of(row, BESIDE: tl.constexpr):
    return first_of(row) if BESIDE else in_float32(row)


@triton.jit
def C_of(row, BESIDE: tl.constexpr):
    return second_of(row) if BESIDE else in_float32(row)


@triton.jit
def zero_of_each_thread(channels, BLOCK_C: tl.constexpr):
    """A zero the compiler cannot prove uniform.

    Rows that it knows to be the same in all threads it loads into uniform registers, and then waits for each row right
    after its load.
    """
    zeros = tl.arange(0, BLOCK_C) // (channels + BLOCK_C)
    return tl.sum(zeros.to(tl.float32), 0).to(tl.int32)


@triton.jit
def put_row(lanes, token, token_stride, mask, row, ADD: tl.constexpr):
    """Write one token's row, or add to it where an order may visit tokens twice."""
    pointers = lanes + token * token_stride
    if ADD:
        tl.debug_barrier()  # an earlier step's row may have been written by other threads
        row += tl.load(pointers, mask=mask, other=0.0)
    tl.store(pointers, row.to(lanes.dtype.element_ty), mask=mask)
    if ADD:
        tl.debug_barrier()


@triton.jit
def sum_over_channels(
    tile, PARTS: tl.constexpr, VECTOR: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """(state, channels) -> (state), on tensor cores: shuffles across the threads of a warp are several times slower.

    Each term is PARTS numbers of TF32 (11 bits); with 0 the sum is a plain one. A thread first adds its neighbouring
    channels, also where it has one: what comes from a reduction Triton places in the product as it is written here.
    The factor `terms` has two rows for every four threads, and in these the numbers that the threads hold: they lie in
    the very registers where the product wants them. The other factor picks those of each pair of states.
    """
    if PARTS == 0 or BLOCK_N < 16 or BLOCK_C < 32 * VECTOR:
        return tl.sum(tile, 1)
    else:
        ROWS: tl.constexpr = BLOCK_C // VECTOR // 4
        K: tl.constexpr = BLOCK_N * 2
        terms = tl.sum(tl.reshape(tile, (BLOCK_N, BLOCK_C // VECTOR, VECTOR)), 2)
        terms = tl.permute(tl.reshape(terms, (BLOCK_N // 2, 2, ROWS, 4)), (1, 2, 0, 3))
        terms = tl.reshape(terms, (2 * ROWS, K))
        pick = (tl.arange(0, K)[:, None] // 4 == tl.arange(0, BLOCK_N // 2)[None, :]).to(tl.float32)
        if PARTS == 1:
            sums = tl.dot(terms, pick, input_precision="tf32")
        else:
            high = (terms.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
            sums = tl.dot(terms - high, pick, input_precision="tf32")
            sums = tl.dot(high, pick, sums, input_precision="tf32")
        sums = tl.sum(tl.reshape(sums, (2, ROWS, BLOCK_N // 2)), 1)
        return tl.reshape(tl.trans(sums), (BLOCK_N,))


@triton.jit
def stack_rows(rows, COUNT: tl.constexpr, BLOCK_C: tl.constexpr):
    """COUNT rows of channels, and zeros, as a (16, channels) tile that lies in the registers of the rows."""
    for _ in tl.static_range(16 - COUNT):
        rows = rows + (tl.zeros((BLOCK_C,), tl.float32),)
    pairs, fours = (), ()
    for i in tl.static_range(0, 16, 2):
        pairs = pairs + (tl.join(rows[i], rows[i + 1]),)
    for i in tl.static_range(0, 8, 2):
        fours = fours + (tl.join(pairs[i], pairs[i + 1]),)
    tile = tl.join(tl.join(fours[0], fours[1]), tl.join(fours[2], fours[3]))
    return tl.reshape(tl.permute(tile, (4, 3, 2, 1, 0)), (16, BLOCK_C))


@triton.jit
def put_group_sums(
    dB, dC, terms, order, k, start, steps, token_stride, HAS_ORDER: tl.constexpr, WIDE: tl.constexpr,
    PARTS: tl.constexpr, VECTOR: tl.constexpr, BLOCK_C: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Write the gradients of B and C at a group's steps, of one state each; `terms` are rows of both by turns.

    One product sums them all: a step's alone are too few for `sum_over_channels`, and their shuffles took longest.
    """
    sums = sum_over_channels(stack_rows(terms, 2 * UNROLL, BLOCK_C), PARTS, VECTOR, 16, BLOCK_C)
    place = tl.arange(0, 16)
    step = start + place // 2
    exists = (step < steps) & (place < 2 * UNROLL)
    token = tl.load(order + k * steps + step, mask=exists, other=-1) if HAS_ORDER else step
    offset = (token.to(tl.int64) if WIDE else token) * token_stride
    tl.store(tl.where(place % 2 == 0, dB, dC) + offset, sums, mask=exists & (token >= 0))


@triton.jit
def aligned(stride, ALIGN: tl.constexpr):
    """The same number, written so that Triton knows it is a multiple of ALIGN and loads vectors."""
    return stride // ALIGN * ALIGN


@triton.jit
def first_row(b, k, batch_stride, direction_stride, ALIGN: tl.constexpr):
    """Offset of the first token's row of a batch element and direction."""
    return b * aligned(batch_stride, ALIGN) + k * aligned(direction_stride, ALIGN)


@triton.jit
def program_indices(directions, chunks, blocks):
    """(batch, direction, chunk, channel block) of this program, as 64-bit numbers: sizes may exceed 2^31 elements."""
    program = tl.program_id(0).to(tl.int64)
    outer, block = program // blocks, program % blocks
    return outer // chunks // directions, outer // chunks % directions, outer % chunks, block


@triton.jit
def load_carried(carried, place, n, c, tile, pitch, VECTOR: tl.constexpr):
    """What a chunk receives from its neighbours, a (state, channels) tile; see triton_chunk_kernels.py."""
    return tl.load(carried + place * (pitch * VECTOR) + tile_offsets(n, c, pitch, VECTOR), mask=tile, other=0.0)


@triton.jit
def tile_offsets(n, c, pitch, VECTOR: tl.constexpr):
    """Offsets of a (state, channels) tile in a buffer whose rows are 2 * pitch long.

    Written so, Triton knows that rows start at even places and no more, and gives each thread two neighbouring
    channels of every state: then sums over the states stay within a thread, and the rows of u, delta and y,
    two bfloat16 a thread, have the same layout. One channel a thread, or four, is slower by half.
    """
    return n[:, None] * (pitch * VECTOR) + c[None, :]


@triton.jit
def checkpoint_tile(
    checkpoints, b_k, block, groups, units, unit_size,
    VECTOR: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Pointers to the saved states before the first group of steps, for a (state, channels) tile of a program, and the
    distance to those before the next group.

    The buffer is (batch and direction, group, unit, state, channel), units of as many channels as a program of the
    backward has. `unit_size` times VECTOR is the size of a unit: written so, Triton knows that rows start at multiples
    of VECTOR and no more, and gives each thread VECTOR neighbouring channels of every state; see `tile_offsets`.
    """
    n, c = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_C)
    group_size = units.to(tl.int64) * (unit_size * VECTOR)
    first = checkpoints + b_k * groups * group_size + block * (BLOCK_C // UNIT) * (unit_size * VECTOR)
    inner = (c // UNIT) * (BLOCK_N * UNIT) + c % UNIT
    return first + n[:, None] * UNIT + inner[None, :], group_size


@triton.jit
def load_constants(
    A, D, bias, k, c, n, channels, state, pitch, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, VECTOR: tl.constexpr
):
    """A times log2(e), so that exp(delta A) is a power of two, D and bias of a block of channels."""
    c_in = c < channels
    tile = (n < state)[:, None] & c_in[None, :]
    rates = tl.load(A + k * state * (pitch * VECTOR) + tile_offsets(n, c, pitch, VECTOR), mask=tile, other=0.0)
    zeros = tl.zeros_like(c).to(tl.float32)
    D_row = tl.load(D + k * channels + c, mask=c_in, other=0.0) if HAS_D else zeros
    bias_row = tl.load(bias + k * channels + c, mask=c_in, other=0.0) if HAS_BIAS else zeros
    return rates * LOG2_E, D_row, bias_row


@triton.jit(do_not_specialize=SIZES + STRIDES)
def forward_kernel(
    u, delta, A, B, C, D, bias, order, y, dy, dC, checkpoints, carried,
    tokens, batch, directions, channels, state, steps, segment, blocks, pitch, groups, units, unit_size, chunk, chunks,
    u_batch, u_token, u_direction, delta_batch, delta_token, delta_direction,
    B_batch, B_token, B_direction, C_batch, C_token, C_direction, dy_batch, dy_token, dy_direction,
    HAS_ORDER: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_C: tl.constexpr,
    BESIDE: tl.constexpr, SEGMENTED: tl.constexpr, ADD: tl.constexpr, CHUNKED: tl.constexpr,
    CHECKPOINT: tl.constexpr, AGAIN: tl.constexpr,
    ROW_ALIGN: tl.constexpr, STATE_ALIGN: tl.constexpr, WIDE: tl.constexpr, PARTS: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, UNROLL: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Outputs of a chunk's steps, or AGAIN for the backward dC; and the state before every CHECKPOINT steps, if any."""
    channels, state = aligned(channels, ROW_ALIGN), aligned(state, STATE_ALIGN)
    b, k, j, block = program_indices(directions, chunks, blocks)
    if BLOCK_N <= 2:  # see backward_kernel; with more states this kernel takes 8 % longer so (Triton 3.6)
        block = block.to(tl.int32)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N)
    rates, D_row, bias_row = load_constants(A, D, bias, k, c, n, channels, state, pitch, HAS_D, HAS_BIAS, VECTOR)

    u_token, delta_token = aligned(u_token, ROW_ALIGN), aligned(delta_token, ROW_ALIGN)
    u += first_row(b, k, u_batch, u_direction, ROW_ALIGN) + c
    delta += first_row(b, k, delta_batch, delta_direction, ROW_ALIGN) + c
    B += first_row(b, k, B_batch, B_direction, STATE_ALIGN)
    C += first_row(b, k, C_batch, C_direction, STATE_ALIGN)
    if STATE_ALIGN % 2 == 0:  # rows of one state are read as fast shared
        zeros = zero_of_each_thread(channels, BLOCK_C) * STATE_ALIGN
        B += zeros
        C += zeros
    if BESIDE:
        B_lanes, B_token = beside_lanes(B, B_token, n, channels, BLOCK_C)
        pair, pairs = n, state
    else:
        B_lanes, B_token, pair, pairs = state_lanes(B, B_token, state, STATE_ALIGN, BLOCK_N)
        # C may have another dtype than B, as where a float32 parameter was added to one of them.
        C_lanes, C_token, C_pair, C_pairs = state_lanes(C, C_token, state, STATE_ALIGN, BLOCK_N)
    if HAS_C:
        y_token = directions * channels
        y += b * tokens * y_token + k * channels + c
    else:
        y_token = directions * channels * state
        y_tile = y + b * tokens * y_token + k * channels * state + c[None, :] * state + n[:, None]
    if AGAIN and HAS_C:
        dy_token = aligned(dy_token, ROW_ALIGN)
        dy += first_row(b, k, dy_batch, dy_direction, ROW_ALIGN) + c
        dC_lanes = dC + (block * batch + b) * tokens * directions * state + k * state + n
    first = (j * chunk).to(tl.int32)
    if CHECKPOINT > 0:
        checkpoint, group_size = checkpoint_tile(
            checkpoints, b * directions + k, block, groups, units, unit_size, VECTOR, BLOCK_N, BLOCK_C, UNIT
        )

    here = walk(order, k, first, steps, HAS_ORDER, WIDE, UNROLL)
    u_rows = load_rows(u, here, u_token, c, channels, UNROLL)
    delta_rows = load_rows(delta, here, delta_token, c, channels, UNROLL)
    B_rows = load_rows(B_lanes, here, B_token, pair, pairs, UNROLL)
    if HAS_C:
        if AGAIN:
            dy_rows = load_rows(dy, here, dy_token, c, channels, UNROLL)
        elif BESIDE:
            C_rows = B_rows
        else:
            C_rows = load_rows(C_lanes, here, C_token, C_pair, C_pairs, UNROLL)
    ahead = walk(order, k, first + UNROLL, steps, HAS_ORDER, WIDE, UNROLL)
    if CHUNKED:
        tile = (n < state)[:, None] & (c < channels)[None, :]
        h = load_carried(carried, ((b * chunks + j) * directions + k) * state, n, c, tile, pitch, VECTOR)
    else:
        h = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for start in range(first, tl.minimum(first + chunk, steps), UNROLL):
        u_ahead = load_rows(u, ahead, u_token, c, channels, UNROLL)
        delta_ahead = load_rows(delta, ahead, delta_token, c, channels, UNROLL)
        B_ahead = load_rows(B_lanes, ahead, B_token, pair, pairs, UNROLL)
        if HAS_C:
            if AGAIN:
                dy_ahead = load_rows(dy, ahead, dy_token, c, channels, UNROLL)
            elif BESIDE:
                C_ahead = B_ahead
            else:
                C_ahead = load_rows(C_lanes, ahead, C_token, C_pair, C_pairs, UNROLL)
        after = walk(order, k, start + 2 * UNROLL, steps, HAS_ORDER, WIDE, UNROLL)
        if CHECKPOINT > UNROLL and start % CHECKPOINT == 0:
            tl.store(checkpoint + start // CHECKPOINT * group_size, h)
        for i in tl.static_range(UNROLL):
            if CHECKPOINT > 0 and CHECKPOINT <= UNROLL and i % CHECKPOINT == 0:
                tl.store(checkpoint + (start + i) // CHECKPOINT * group_size, h)
            u_t = in_float32(u_rows[i])
            delta_t = softplus(in_float32(delta_rows[i]) + bias_row)
            if SEGMENTED:
                h = tl.where((start + i) % segment == 0, 0.0, h)
            h = tl.exp2(delta_t[None, :] * rates) * h + (delta_t * u_t)[None, :] * B_of(B_rows[i], BESIDE)[:, None]
            if AGAIN:
                if HAS_C:
                    dC_t = sum_over_channels(h * in_float32(dy_rows[i])[None, :], PARTS, VECTOR, BLOCK_N, BLOCK_C)
                    put_row(dC_lanes, here[i], directions * state, inside(n, state, here[i]), dC_t, ADD)
            else:
                c_here = inside(c, channels, here[i])
                if HAS_C:
                    y_t = tl.sum(h * C_of(C_rows[i], BESIDE)[:, None], 0)
                    if HAS_D:
                        y_t += D_row * u_t
                    put_row(y, here[i], y_token, c_here, saturate(y_t, y.dtype.element_ty), ADD)
                else:
                    states = saturate(h, y.dtype.element_ty)
                    put_row(y_tile, here[i], y_token, (n < state)[:, None] & c_here[None, :], states, ADD)
        here, ahead = ahead, after
        u_rows, delta_rows, B_rows = u_ahead, delta_ahead, B_ahead
        if HAS_C:
            if AGAIN:
                dy_rows = dy_ahead
            else:
                C_rows = C_ahead


@triton.jit(do_not_specialize=SIZES + STRIDES)
def backward_kernel(
    u, delta, A, B, C, D, bias, order, checkpoints, carried,
    dy, du, ddelta, dB, dC, shares, zero,
    tokens, batch, directions, channels, state, steps, segment, blocks, pitch, groups, units, unit_size, chunk, chunks,
    u_batch, u_token, u_direction, delta_batch, delta_token, delta_direction,
    B_batch, B_token, B_direction, C_batch, C_token, C_direction, dy_batch, dy_token, dy_direction,
    HAS_ORDER: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_C: tl.constexpr,
    BESIDE: tl.constexpr, SEGMENTED: tl.constexpr, ADD: tl.constexpr, CHUNKED: tl.constexpr,
    WITH_C: tl.constexpr, ROW_ALIGN: tl.constexpr,
    STATE_ALIGN: tl.constexpr, WIDE: tl.constexpr, PARTS: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Gradients, WITH_C that of C too, from a chunk's last group of UNROLL steps to its first; derived in README.md.

    `shares` are every chunk's parts of the gradients of A, (direction, state, pitch), D and bias, in this order.
    `zero` is 0.0, passed as an argument so that the compiler cannot fold it.
    """
    channels, state = aligned(channels, ROW_ALIGN), aligned(state, STATE_ALIGN)
    b, k, j, block = program_indices(directions, chunks, blocks)
    block = block.to(tl.int32)  # channels are compared at every step, which takes twice the instructions in 64 bits
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N)
    c_in, n_in = c < channels, n < state
    tile = n_in[:, None] & c_in[None, :]
    rates, D_row, bias_row = load_constants(A, D, bias, k, c, n, channels, state, pitch, HAS_D, HAS_BIAS, VECTOR)

    u_token, delta_token = aligned(u_token, ROW_ALIGN), aligned(delta_token, ROW_ALIGN)
    C_token = aligned(C_token, STATE_ALIGN)
    dy_token = aligned(dy_token, ROW_ALIGN)
    u += first_row(b, k, u_batch, u_direction, ROW_ALIGN) + c
    delta += first_row(b, k, delta_batch, delta_direction, ROW_ALIGN) + c
    B += first_row(b, k, B_batch, B_direction, STATE_ALIGN)
    C += first_row(b, k, C_batch, C_direction, STATE_ALIGN) + n
    if BESIDE:
        B_lanes, B_token = beside_lanes(B, B_token, n, channels, BLOCK_C)
    else:
        B_lanes, B_token = B + n, aligned(B_token, STATE_ALIGN)
    row_token = directions * channels  # of du and ddelta
    row = b * tokens * row_token + k * channels + c
    du += row
    ddelta += row
    dy += first_row(b, k, dy_batch, dy_direction, ROW_ALIGN)
    share = (block * batch + b) * tokens * directions * state + k * state + n
    dB += share
    dC += share
    GROUPED: tl.constexpr = WITH_C and BLOCK_N == 1 and PARTS > 0 and not ADD
    own = (b * chunks + j) * directions + k
    first = (j * chunk // UNROLL).to(tl.int32)
    last = tl.minimum(first + chunk // UNROLL, tl.cdiv(steps, UNROLL)) - 1
    start = last * UNROLL
    checkpoint, group_size = checkpoint_tile(
        checkpoints, b * directions + k, block, groups, units, unit_size, VECTOR, BLOCK_N, BLOCK_C, BLOCK_C
    )

    here = walk(order, k, start, steps, HAS_ORDER, WIDE, UNROLL)
    u_rows = load_rows(u, here, u_token, c, channels, UNROLL)
    delta_rows = load_rows(delta, here, delta_token, c, channels, UNROLL)
    if HAS_C:
        dy_lanes = dy + c
        dy_rows = load_rows(dy_lanes, here, dy_token, c, channels, UNROLL)
    else:
        dy_tile = dy + c[None, :] * state + n[:, None]
    before = walk(order, k, start - UNROLL, steps, HAS_ORDER, WIDE, UNROLL)
    h_checkpoint = tl.load(checkpoint + start // UNROLL * group_size)
    if CHUNKED:
        dh = load_carried(carried, own * state, n, c, tile, pitch, VECTOR)
    else:
        dh = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    dA_tile = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    dD_row = tl.zeros((BLOCK_C,), tl.float32)
    dbias_row = tl.zeros((BLOCK_C,), tl.float32)
    for _ in range(first, last + 1):
        h = h_checkpoint
        h_checkpoint = tl.load(checkpoint + tl.maximum(start // UNROLL - 1, 0) * group_size)
        u_before = load_rows(u, before, u_token, c, channels, UNROLL)
        delta_before = load_rows(delta, before, delta_token, c, channels, UNROLL)
        # Loaded here and not a group ahead: registers are scarce, and other programs have these rows in the cache.
        B_rows = load_rows(B_lanes, here, B_token, n, state, UNROLL)
        if HAS_C:
            C_rows = B_rows if BESIDE else load_rows(C, here, C_token, n, state, UNROLL)
            dy_before = load_rows(dy_lanes, before, dy_token, c, channels, UNROLL)
        earlier = walk(order, k, start - 2 * UNROLL, steps, HAS_ORDER, WIDE, UNROLL)

        delta_list, before_list, after_list = (), (), ()  # step sizes, and the states before and after each step
        terms = ()  # of dB and of dC, by turns, of each step
        for i in tl.static_range(UNROLL):
            delta_t = softplus(in_float32(delta_rows[i]) + bias_row)
            delta_t = tl.where(start + i < steps, delta_t, 0.0)  # beyond the end nothing decays
            if SEGMENTED:
                h = tl.where((start + i) % segment == 0, 0.0, h)
            delta_list, before_list = delta_list + (delta_t,), before_list + (h,)
            decay = tl.exp2(delta_t[None, :] * rates)
            h = decay * h + (delta_t * in_float32(u_rows[i]))[None, :] * B_of(B_rows[i], BESIDE)[:, None]
            after_list = after_list + (h,)
        for i in tl.static_range(UNROLL - 1, -1, -1):
            token, delta_t = here[i], delta_list[i]
            u_t, B_t = in_float32(u_rows[i]), B_of(B_rows[i], BESIDE)
            c_here, n_here = inside(c, channels, token), inside(n, state, token)
            if HAS_C:
                dy_t = in_float32(dy_rows[i])
                dh += C_of(C_rows[i], BESIDE)[:, None] * dy_t[None, :]
                if GROUPED:
                    terms = (tl.reshape(after_list[i], (BLOCK_C,)) * dy_t,) + terms
                elif WITH_C:
                    dC_t = sum_over_channels(after_list[i] * dy_t[None, :], PARTS, VECTOR, BLOCK_N, BLOCK_C)
                    put_row(dC, token, directions * state, n_here, dC_t, ADD)
            else:
                mask = n_in[:, None] & c_here[None, :]
                dh += in_float32(tl.load(dy_tile + token * dy_token, mask=mask, other=0.0))
            if GROUPED:
                terms = (tl.reshape(dh, (BLOCK_C,)) * (delta_t * u_t),) + terms
            else:
                dB_t = sum_over_channels(dh * (delta_t * u_t)[None, :], PARTS, VECTOR, BLOCK_N, BLOCK_C)
                put_row(dB, token, directions * state, n_here, dB_t, ADD)
            through_input = tl.sum(dh * B_t[:, None], 0)
            if BLOCK_N > 2:  # recompute the decays: else the compiler holds those of all steps in registers, and spills
                delta_t += zero
            dh *= tl.exp2(delta_t[None, :] * rates)
            through_decay = dh * before_list[i]
            dA_tile += through_decay * delta_t[None, :]
            ddelta_t = tl.sum(through_decay * rates, 0) * LN_2 + u_t * through_input
            ddelta_t *= sigmoid(in_float32(delta_rows[i]) + bias_row)  # the slope of softplus
            du_t = through_input * delta_t
            if HAS_D:
                du_t += D_row * dy_t
                dD_row += dy_t * u_t
            dbias_row += ddelta_t
            put_row(du, token, row_token, c_here, du_t, ADD)
            put_row(ddelta, token, row_token, c_here, ddelta_t, ADD)
            if SEGMENTED:
                dh = tl.where((start + i) % segment == 0, 0.0, dh)
        if GROUPED:
            put_group_sums(
                dB, dC, terms, order, k, start, steps, directions * state,
                HAS_ORDER, WIDE, PARTS, VECTOR, BLOCK_C, UNROLL,
            )  # fmt: skip
        start -= UNROLL
        here, before = before, earlier
        u_rows, delta_rows = u_before, delta_before
        if HAS_C:
            dy_rows = dy_before

    rates_size = state * (pitch * VECTOR)
    k = own % directions  # computed again, instead of held in registers during the walk
    shares += own // directions * (directions * (rates_size + 2 * channels))
    tl.store(shares + k * rates_size + tile_offsets(n, c, pitch, VECTOR), dA_tile, mask=tile)
    shares += directions * rates_size + k * channels + c
    tl.store(shares, dD_row, mask=c_in)
    tl.store(shares + directions * channels, dbias_row, mask=c_in)
