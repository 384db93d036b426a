"""The kernels of state-space duality in Triton; how they are launched is in triton_fused.py.

A program has one head, or a block of its channels, of one direction, with the state as one (state, channels) tile of
registers. It goes from chunk to chunk, LENGTH steps each, of a segment of the sequence: what the steps of a chunk give
to each other are products of (steps, steps) tiles, as in chunked.py, and the state takes along what came before. Decays
are powers of two, and the sums that they are powers of, like the state, are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vssm_kernels.selective_scan.triton_kernels import LOG2_E, softplus
from vssm_kernels.triton_math import saturate, sigmoid

# Not compiled in, so that all lengths and batches share a kernel; what is left shows which accesses can be vectors.
SIZES = ["steps", "rows", "batch", "directions", "heads", "per_group", "blocks", "chunks", "length", "segments"]
SIZES += ["delta_batch", "delta_token", "delta_direction"]


@triton.jit
def product(a, b, NARROW: tl.constexpr, PRECISION: tl.constexpr):
    """On tensor cores, in bfloat16 if NARROW, and added up in float32."""
    if NARROW:
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    else:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)


@triton.jit
def place(directions, heads, blocks, segments):
    """Batch, direction, segment, head and block of channels of this program. The heads of a token, which read the same
    B and C, run at the same time."""
    program = tl.program_id(0)
    block = program % blocks
    head = program // blocks % heads
    segment = program // (blocks * heads) % segments
    walk = program // (blocks * heads * segments)
    return (walk // directions).to(tl.int64), walk % directions, segment, head, block


@triton.jit
def token_of(order, k, step, steps, HAS_ORDER: tl.constexpr, WIDE: tl.constexpr):
    """The tokens of steps, -1 at empty steps and beyond the sequence; WIDE where their rows need 64-bit offsets."""
    exists = step < steps
    if HAS_ORDER:
        token = tl.load(order + k * steps + step, mask=exists, other=-1)
    else:
        token = tl.where(exists, step, -1)
    return token.to(tl.int64) if WIDE else token


@triton.jit
def row_of(order, k, step, steps, HAS_ORDER: tl.constexpr, BY_STEP: tl.constexpr, WIDE: tl.constexpr):
    """Where a step writes: to its token, or where tokens are visited twice, to a row of its own."""
    return token_of(order, k, step, steps, HAS_ORDER and not BY_STEP, WIDE)


@triton.jit
def load(base, token, stride, column, size):
    """(steps, columns), zeros where there is no token."""
    mask = (token >= 0)[:, None] & (column < size)[None, :]
    return tl.load(base + token[:, None] * stride + column[None, :], mask=mask, other=0.0)


@triton.jit
def store(base, row, stride, column, size, values):
    mask = (row >= 0)[:, None] & (column < size)[None, :]
    values = saturate(values, base.dtype.element_ty)
    tl.store(base + row[:, None] * stride + column[None, :], values, mask=mask)


@triton.jit
def add_with_rest(a, a_rest, b, b_rest):
    """The sum of two numbers, each with what rounding has left of it, and what rounding leaves of the sum."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part) + a_rest + b_rest


@triton.jit
def steps_of(delta, delta_token, shift, rate, token, step, steps, LENGTH: tl.constexpr):
    """Step sizes before and after softplus; the sums of the logarithms of decays from the chunk's start to each step,
    with their rests, so that their differences keep all digits after large steps; the decays from each step to the
    chunk's end, and the sum for the whole chunk. Steps beyond the sequence decay nothing."""
    x = tl.load(delta + token * delta_token, mask=token >= 0, other=0.0).to(tl.float32) + shift
    size = tl.where(step < steps, softplus(x), 0.0)
    a, rest = tl.associative_scan((size * rate, size * 0.0), 0, add_with_rest)
    last = tl.arange(0, LENGTH) == LENGTH - 1
    total, total_rest = tl.sum(tl.where(last, a, 0.0), 0), tl.sum(tl.where(last, rest, 0.0), 0)
    return x, size, a, rest, tl.exp2((total - a) + (total_rest - rest)), total


@triton.jit
def head_constants(A, bias, k, heads, head, HAS_BIAS: tl.constexpr):
    """The rate of decay, to the base of 2, and the bias of step sizes."""
    rate = tl.load(A + k * heads + head) * LOG2_E
    return rate, tl.load(bias + k * heads + head) if HAS_BIAS else rate * 0.0


@triton.jit
def pair_decays(a, rest, LENGTH: tl.constexpr):
    """(to, from): the decay from each step of a chunk to each later one, and zero."""
    later = tl.arange(0, LENGTH)[:, None] >= tl.arange(0, LENGTH)[None, :]
    between = (a[:, None] - a[None, :]) + (rest[:, None] - rest[None, :])
    return tl.exp2(tl.where(later, between, float("-inf")))


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    u, delta, B, C, A, D, bias, order, starts, y, saved,
    steps, rows, directions, heads, channels, state, per_group, blocks, chunks, length, segments,
    u_batch, u_token, u_direction, u_head, delta_batch, delta_token, delta_direction, delta_head,
    B_batch, B_token, B_direction, B_group, C_batch, C_token, C_direction, C_group,
    HAS_ORDER: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_START: tl.constexpr, SAVE: tl.constexpr,
    SHIFT: tl.constexpr, BY_STEP: tl.constexpr, WIDE: tl.constexpr,
    NARROW: tl.constexpr, PRECISION: tl.constexpr, LENGTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Outputs of a segment, and SAVE the state before each of its chunks."""
    b, k, segment, head, block = place(directions, heads, blocks, segments)
    group = head // per_group
    p, n, l = block * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N), tl.arange(0, LENGTH)
    tile = n[:, None] * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    y_row = directions * heads * channels
    own = ((b * directions + k) * heads + head) * blocks + block
    u += b * u_batch + k * u_direction + head * u_head
    delta += b * delta_batch + k * delta_direction + head * delta_head
    B += b * B_batch + k * B_direction + group * B_group
    C += b * C_batch + k * C_direction + group * C_group
    y += b * rows * y_row + (k * heads + head) * channels
    rate, shift = head_constants(A, bias, k, heads, head, HAS_BIAS)
    if HAS_START:
        h = tl.load(starts + (own * segments + segment) * (BLOCK_N * BLOCK_P) + tile)
    else:
        h = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    if SHIFT:  # nothing is shifted to the first step
        row = tl.where((l == 0) & (segment == 0), row_of(order, k, l, steps, HAS_ORDER, BY_STEP, WIDE), -1)
        store(y, row, y_row, p, channels, tl.zeros((LENGTH, BLOCK_P), tl.float32))
    for chunk in range(segment * length, tl.minimum((segment + 1) * length, chunks)):
        step = chunk * LENGTH + l
        token = token_of(order, k, step, steps, HAS_ORDER, WIDE)
        _, size, a, rest, to_end, total = steps_of(delta, delta_token, shift, rate, token, step, steps, LENGTH)
        u_rows = load(u, token, u_token, p, channels)
        B_rows, C_rows = load(B, token, B_token, n, state), load(C, token, C_token, n, state)
        if SAVE:
            tl.store(saved + (own * chunks + chunk) * (BLOCK_N * BLOCK_P) + tile, h.to(saved.dtype.element_ty))
        scores = product(C_rows, tl.trans(B_rows), NARROW, PRECISION)
        weights = scores * pair_decays(a, rest, LENGTH) * size[None, :]
        out = product(weights, u_rows, NARROW, PRECISION)
        out += tl.exp2(a)[:, None] * product(C_rows, h, NARROW, PRECISION)
        if HAS_D:
            out += tl.load(D + k * heads + head) * u_rows.to(tl.float32)
        row = row_of(order, k, step + SHIFT, steps, HAS_ORDER, BY_STEP, WIDE)
        store(y, row, y_row, p, channels, out)
        given = B_rows.to(tl.float32) * (size * to_end)[:, None]
        h = tl.exp2(total) * h + product(tl.trans(given), u_rows, NARROW, PRECISION)


@triton.jit(do_not_specialize=SIZES)
def ends_kernel(
    u, delta, B, A, bias, order, ends, totals,
    steps, directions, heads, channels, state, per_group, blocks, chunks, length, segments,
    u_batch, u_token, u_direction, u_head, delta_batch, delta_token, delta_direction, delta_head,
    B_batch, B_token, B_direction, B_group,
    HAS_ORDER: tl.constexpr, HAS_BIAS: tl.constexpr, SHIFT: tl.constexpr, ADJOINT: tl.constexpr,
    WIDE: tl.constexpr, NARROW: tl.constexpr, PRECISION: tl.constexpr,
    LENGTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The state that a segment reaches from zero, and the sum of its logarithms of decays; adjoint, with the output's
    gradient for u and C for B, the gradient of the state before it by what it puts out."""
    b, k, segment, head, block = place(directions, heads, blocks, segments)
    own = ((b * directions + k) * heads + head) * blocks + block
    p, n, l = block * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N), tl.arange(0, LENGTH)
    u += b * u_batch + k * u_direction + head * u_head
    delta += b * delta_batch + k * delta_direction + head * delta_head
    B += b * B_batch + k * B_direction + head // per_group * B_group
    rate, shift = head_constants(A, bias, k, heads, head, HAS_BIAS)
    h, whole = tl.zeros((BLOCK_N, BLOCK_P), tl.float32), 0.0
    first, end = segment * length, tl.minimum((segment + 1) * length, chunks)
    for i in range(0, end - first):
        chunk = end - 1 - i if ADJOINT else first + i
        step = chunk * LENGTH + l
        token = token_of(order, k, step, steps, HAS_ORDER, WIDE)
        _, size, a, _, to_end, total = steps_of(delta, delta_token, shift, rate, token, step, steps, LENGTH)
        u_rows = load(u, token_of(order, k, step + SHIFT, steps, HAS_ORDER, WIDE), u_token, p, channels)
        by = tl.exp2(a) if ADJOINT else size * to_end
        given = load(B, token, B_token, n, state).to(tl.float32) * by[:, None]
        h = tl.exp2(total) * h + product(tl.trans(given), u_rows, NARROW, PRECISION)
        whole += total
    tile = n[:, None] * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    tl.store(ends + (own * segments + segment) * (BLOCK_N * BLOCK_P) + tile, h)
    tl.store(totals + own * segments + segment, whole)


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    u, delta, B, C, dy, A, D, bias, order, dends, saved, du, ddelta, dB, dC, dstart, shares,
    steps, rows, batch, directions, heads, channels, state, per_group, blocks, chunks, length, segments,
    u_batch, u_token, u_direction, u_head, delta_batch, delta_token, delta_direction, delta_head,
    B_batch, B_token, B_direction, B_group, C_batch, C_token, C_direction, C_group,
    dy_batch, dy_token, dy_direction, dy_head,
    HAS_ORDER: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_END: tl.constexpr,
    HAS_START: tl.constexpr, SHIFT: tl.constexpr, BY_STEP: tl.constexpr, WIDE: tl.constexpr,
    NARROW: tl.constexpr, PRECISION: tl.constexpr, LENGTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """All gradients; those of B and C are shares of each head and block, and so is that of delta of each block."""
    b, k, segment, head, block = place(directions, heads, blocks, segments)
    group, groups = head // per_group, heads // per_group
    p, n, l = block * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N), tl.arange(0, LENGTH)
    tile = n[:, None] * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    earlier = l[:, None] > l[None, :]
    row_size, state_row = directions * heads, directions * groups * state
    du_row = row_size * channels
    of_group = (((head % per_group) * blocks + block) * batch + b) * rows * directions * groups + group
    own = ((b * directions + k) * heads + head) * blocks + block
    u += b * u_batch + k * u_direction + head * u_head
    delta += b * delta_batch + k * delta_direction + head * delta_head
    B += b * B_batch + k * B_direction + group * B_group
    C += b * C_batch + k * C_direction + group * C_group
    dy += b * dy_batch + k * dy_direction + head * dy_head
    du += b * rows * du_row + (k * heads + head) * channels
    ddelta += (block * batch + b) * rows * row_size + k * heads + head
    dB += (of_group + k * groups) * state
    dC += (of_group + k * groups) * state
    rate, shift = head_constants(A, bias, k, heads, head, HAS_BIAS)
    if HAS_END:
        dh = tl.load(dends + (own * segments + segment) * (BLOCK_N * BLOCK_P) + tile)
    else:
        dh = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    dA, dD, dbias = 0.0, 0.0, 0.0
    begin, stop = segment * length, tl.minimum((segment + 1) * length, chunks)
    for i in range(0, stop - begin):
        chunk = stop - 1 - i
        step = chunk * LENGTH + l
        token = token_of(order, k, step, steps, HAS_ORDER, WIDE)
        x, size, a, rest, to_end, total = steps_of(delta, delta_token, shift, rate, token, step, steps, LENGTH)
        row = row_of(order, k, step, steps, HAS_ORDER, BY_STEP, WIDE)
        B_rows, C_rows = load(B, token, B_token, n, state), load(C, token, C_token, n, state)
        u_rows = load(u, token, u_token, p, channels)
        dy_rows = load(dy, token_of(order, k, step + SHIFT, steps, HAS_ORDER, WIDE), dy_token, p, channels)

        decay = pair_decays(a, rest, LENGTH)
        weights = product(C_rows, tl.trans(B_rows), NARROW, PRECISION) * decay
        dweights = product(dy_rows, tl.trans(u_rows), NARROW, PRECISION) * size[None, :]
        pairs = tl.where(earlier, dweights * weights, 0.0)
        dscores = dweights * decay

        read = product(B_rows, dh, NARROW, PRECISION) * to_end[:, None]
        from_step = size * tl.sum(read * u_rows.to(tl.float32), 1)
        dadded = product(tl.trans(weights), dy_rows, NARROW, PRECISION) + read
        dsize = tl.sum(dadded * u_rows.to(tl.float32), 1)
        du_rows = size[:, None] * dadded
        if HAS_D:
            du_rows += tl.load(D + k * heads + head) * dy_rows.to(tl.float32)
            dD += tl.sum(dy_rows.to(tl.float32) * u_rows.to(tl.float32))
        store(du, row, du_row, p, channels, du_rows)

        dB_rows = product(u_rows, tl.trans(dh), NARROW, PRECISION) * (size * to_end)[:, None]
        dB_rows += product(tl.trans(dscores), C_rows, NARROW, PRECISION)
        store(dB, row, state_row, n, state, dB_rows)

        h = tl.load(saved + (own * chunks + chunk) * (BLOCK_N * BLOCK_P) + tile)
        at_start = product(dy_rows, tl.trans(h), NARROW, PRECISION) * tl.exp2(a)[:, None]
        store(dC, row, state_row, n, state, product(dscores, B_rows, NARROW, PRECISION) + at_start)

        # All that passes a step, from an earlier one or the start to it, a later one or the end. Added up as such:
        # differences of sums from the start would lose the digits of what has decayed.
        passing = product(tl.where(earlier, 0.0, 1.0), pairs, NARROW, PRECISION) + from_step[None, :]
        drate = tl.sum(tl.where(earlier, passing, 0.0), 1) + tl.exp2(total) * tl.sum(dh * h.to(tl.float32))
        drate += tl.cumsum(tl.sum(at_start * C_rows.to(tl.float32), 1), 0, reverse=True)
        dx = tl.where(step < steps, (dsize + rate / LOG2_E * drate) * sigmoid(x), 0.0)
        tl.store(ddelta + row * row_size, dx.to(ddelta.dtype.element_ty), mask=row >= 0)
        dA += tl.sum(size * drate, 0)
        dbias += tl.sum(dx, 0)
        dh = tl.exp2(total) * dh
        dh += product(tl.trans(C_rows.to(tl.float32) * tl.exp2(a)[:, None]), dy_rows, NARROW, PRECISION)
    if HAS_START:
        tl.store(dstart + own * (BLOCK_N * BLOCK_P) + tile, dh, mask=tile >= segment * (BLOCK_N * BLOCK_P))
    share = shares + (own * segments + segment) * 3
    tl.store(share, dA)
    tl.store(share + 1, dD)
    tl.store(share + 2, dbias)
