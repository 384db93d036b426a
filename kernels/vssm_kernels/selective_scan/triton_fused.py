"""The selective scan on a GPU in Triton: one program walks one (batch, direction, block of channels).

A program holds its states as one (state, channels) tile of registers and is serial over the steps, `UNROLL` of them
at a time so that several rows are in flight. The backward stores nothing between forward and backward: it first runs
the recurrence again, writing the state before every `UNROLL` steps to a scratch buffer, then walks back through them.
dB and dC, sums over channels, are written per block of channels and added up afterwards, in a fixed order: no atomics,
so two runs are bit-equal. All arithmetic is float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vssm_kernels.dispatch import Backend
from vssm_kernels.gpu import why_no_triton
from vssm_kernels.orders import order_facts, output_rows
from vssm_kernels.selective_scan.arguments import ScanArguments

try:
    import triton
    import triton.language as tl
except ImportError:  # why_no_triton says so
    triton = None

if triton is not None:

    @triton.jit
    def softplus(x):
        """log(1 + exp(x)) with relative accuracy for very negative x, where delta is small."""
        e = tl.exp2(-tl.abs(x) * 1.4426950408889634)
        series = e * (1.0 - e * (0.5 - e * (0.3333333333 - e * 0.25)))
        return tl.maximum(x, 0.0) + tl.where(e < 0.03, series, tl.log2(1.0 + e) * 0.6931471805599453)

    @triton.jit
    def softplus_slope(delta):
        """The derivative of softplus in terms of its value: 1 - exp(-delta)."""
        series = delta * (1.0 - delta * (0.5 - delta * (0.1666666667 - delta * 0.0416666667)))
        return tl.where(delta < 0.03, series, 1.0 - tl.exp2(delta * -1.4426950408889634))

    @triton.jit
    def visited_token(order, k, step, steps, HAS_ORDER: tl.constexpr):
        """The token of a step, -1 for an empty step and beyond the end."""
        if HAS_ORDER:
            token = tl.load(order + k * steps + step, mask=step < steps, other=-1)
        else:
            token = tl.where(step < steps, step, -1)
        return token.to(tl.int64)

    @triton.jit
    def inside(index, size, token):
        """Mask of the indices below size, none at an empty step: there nothing is read or written."""
        return index < tl.where(token >= 0, size, 0)

    @triton.jit
    def load_row(base, token, token_stride, index, mask):
        """One token's row in float32, zeros outside the mask."""
        return tl.load(base + token * token_stride + index, mask=mask, other=0.0).to(tl.float32)

    @triton.jit
    def load_constants(base, index, mask, PRESENT: tl.constexpr):
        """A row of float32 parameters; zeros where the model has none."""
        if PRESENT:
            return tl.load(base + index, mask=mask, other=0.0)
        else:
            return tl.zeros_like(index).to(tl.float32)

    @triton.jit
    def put_row(base, token, token_stride, index, mask, row, ADD: tl.constexpr):
        """Write one token's row, or add to it where an order may visit tokens twice."""
        pointers = base + token * token_stride + index
        if ADD:
            tl.debug_barrier()  # an earlier step's row may have been written by other threads
            row += tl.load(pointers, mask=mask, other=0.0)
        tl.store(pointers, row.to(base.dtype.element_ty), mask=mask)
        if ADD:
            tl.debug_barrier()

    @triton.jit
    def program_indices(directions, blocks):
        """(batch, direction, channel block) of this program, as 64-bit numbers: sizes may exceed 2^31 elements."""
        program = tl.program_id(0).to(tl.int64)
        return program // blocks // directions, program // blocks % directions, program % blocks

    @triton.jit
    def tile_offsets(n, c, half_pitch):
        """Offsets of a (state, channels) tile in a buffer whose rows are 2 * half_pitch long.

        Written so, Triton knows that rows start at even places and no more, and gives each thread two neighbouring
        channels of every state: then sums over the states stay within a thread, and the rows of u, delta and y,
        two bfloat16 a thread, have the same layout. One channel a thread, or four, is slower by half.
        """
        return n[:, None] * (half_pitch * 2) + c[None, :]

    @triton.jit(do_not_specialize=["half_pitch"])
    def forward_kernel(
        u, delta, A, B, C, D, bias, order, y, checkpoints,
        tokens, directions, channels, state, steps, segment, blocks, half_pitch,
        u_batch, u_token, u_direction, delta_batch, delta_token, delta_direction,
        B_batch, B_token, B_direction, C_batch, C_token, C_direction,
        HAS_ORDER: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_C: tl.constexpr,
        SEGMENTED: tl.constexpr, ADD: tl.constexpr, CHECKPOINT: tl.constexpr,
        BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, UNROLL: tl.constexpr, STAGES: tl.constexpr,
    ):  # fmt: skip
        """Outputs of a whole sequence, or with CHECKPOINT only the state before every UNROLL steps."""
        b, k, block = program_indices(directions, blocks)
        c = block * BLOCK_C + tl.arange(0, BLOCK_C)
        n = tl.arange(0, BLOCK_N)
        c_in, n_in = c < channels, n < state
        tile = n_in[:, None] & c_in[None, :]
        places = tile_offsets(n, c, half_pitch)
        A_tile = tl.load(A + k * state * (half_pitch * 2) + places, mask=tile, other=0.0)
        A_tile *= 1.4426950408889634  # exp(delta A) = exp2(delta A log2(e))
        bias_row = (
            tl.load(bias + k * channels + c, mask=c_in, other=0.0) if HAS_BIAS else tl.zeros_like(c).to(tl.float32)
        )
        D_row = tl.load(D + k * channels + c, mask=c_in, other=0.0) if HAS_D else bias_row

        u += b * u_batch + k * u_direction
        delta += b * delta_batch + k * delta_direction
        B += b * B_batch + k * B_direction
        C += b * C_batch + k * C_direction
        y_token = directions * channels
        y_row = b * tokens * y_token + k * channels
        if not HAS_C:
            y_token, y_row = y_token * state, y_row * state
        y += y_row
        checkpoints += (b * directions + k) * tl.cdiv(steps, UNROLL) * state * (half_pitch * 2)

        h = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        for start in tl.range(0, steps, UNROLL, num_stages=STAGES):
            if CHECKPOINT:
                tl.store(checkpoints + places, h, mask=tile)
                checkpoints += state * (half_pitch * 2)
            for i in tl.static_range(UNROLL):
                step = start + i
                token = visited_token(order, k, step, steps, HAS_ORDER)
                c_here, n_here = inside(c, channels, token), inside(n, state, token)
                u_t = load_row(u, token, u_token, c, c_here)
                delta_t = softplus(load_row(delta, token, delta_token, c, c_here) + bias_row)
                B_t = load_row(B, token, B_token, n, n_here)
                if SEGMENTED:
                    h = tl.where(step % segment == 0, 0.0, h)
                h = tl.exp2(delta_t[None, :] * A_tile) * h + (delta_t * u_t)[None, :] * B_t[:, None]
                if not CHECKPOINT:
                    if HAS_C:
                        C_t = load_row(C, token, C_token, n, n_here)
                        y_t = tl.sum(h * C_t[:, None], 0)
                        if HAS_D:
                            y_t += D_row * u_t
                        put_row(y, token, y_token, c, c_here, y_t, ADD)
                    else:
                        here = n_in[:, None] & c_here[None, :]
                        put_row(y, token, y_token, c[None, :] * state + n[:, None], here, h, ADD)

    @triton.jit(do_not_specialize=["half_pitch"])
    def backward_kernel(
        u, delta, A, B, C, D, bias, order, checkpoints,
        dy, du, ddelta, dA, dB, dC, dD, dbias,
        tokens, batch, directions, channels, state, steps, segment, blocks, half_pitch,
        u_batch, u_token, u_direction, delta_batch, delta_token, delta_direction,
        B_batch, B_token, B_direction, C_batch, C_token, C_direction,
        HAS_ORDER: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_C: tl.constexpr,
        SEGMENTED: tl.constexpr, ADD: tl.constexpr,
        BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, UNROLL: tl.constexpr,
    ):  # fmt: skip
        """Gradients of a whole sequence, from its last UNROLL steps to its first; the adjoint is in reference.py."""
        b, k, block = program_indices(directions, blocks)
        c = block * BLOCK_C + tl.arange(0, BLOCK_C)
        n = tl.arange(0, BLOCK_N)
        c_in, n_in = c < channels, n < state
        tile = n_in[:, None] & c_in[None, :]
        places = tile_offsets(n, c, half_pitch)
        A_tile = tl.load(A + k * state * (half_pitch * 2) + places, mask=tile, other=0.0)
        A_tile *= 1.4426950408889634
        bias_row = (
            tl.load(bias + k * channels + c, mask=c_in, other=0.0) if HAS_BIAS else tl.zeros_like(c).to(tl.float32)
        )
        D_row = tl.load(D + k * channels + c, mask=c_in, other=0.0) if HAS_D else bias_row

        u += b * u_batch + k * u_direction
        delta += b * delta_batch + k * delta_direction
        B += b * B_batch + k * B_direction
        C += b * C_batch + k * C_direction
        row_token = directions * channels  # of du, ddelta and dy
        row = b * tokens * row_token + k * channels
        du += row
        ddelta += row
        dy += row if HAS_C else row * state
        dy_token = row_token if HAS_C else row_token * state
        state_token = directions * state  # of this block's dB and dC
        state_row = (block * batch + b) * tokens * state_token + k * state
        dB += state_row
        dC += state_row
        groups = tl.cdiv(steps, UNROLL)
        checkpoints += (b * directions + k + 1) * groups * state * (half_pitch * 2)

        dh = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        dA_tile = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        dD_row = tl.zeros((BLOCK_C,), tl.float32)
        dbias_row = tl.zeros((BLOCK_C,), tl.float32)
        for back in range(groups):
            start = (groups - 1 - back) * UNROLL
            checkpoints -= state * (half_pitch * 2)
            h = tl.load(checkpoints + places, mask=tile, other=0.0)
            token_list, u_list, delta_list, B_list, decayed_list, decay_list = (), (), (), (), (), ()
            for i in tl.static_range(UNROLL):
                step = start + i
                token = visited_token(order, k, step, steps, HAS_ORDER)
                c_here, n_here = inside(c, channels, token), inside(n, state, token)
                u_t = load_row(u, token, u_token, c, c_here)
                delta_t = softplus(load_row(delta, token, delta_token, c, c_here) + bias_row)
                delta_t = tl.where(step < steps, delta_t, 0.0)  # beyond the end nothing decays
                B_t = load_row(B, token, B_token, n, n_here)
                if SEGMENTED:
                    h = tl.where(step % segment == 0, 0.0, h)
                decay = tl.exp2(delta_t[None, :] * A_tile)
                token_list = token_list + (token,)
                u_list = u_list + (u_t,)
                delta_list = delta_list + (delta_t,)
                B_list = B_list + (B_t,)
                decayed_list = decayed_list + (decay * h,)  # the state before, times its decay
                decay_list = decay_list + (decay,)
                h = decay * h + (delta_t * u_t)[None, :] * B_t[:, None]
            for i in tl.static_range(UNROLL - 1, -1, -1):
                step = start + i
                token, u_t, delta_t, B_t = token_list[i], u_list[i], delta_list[i], B_list[i]
                decayed, decay = decayed_list[i], decay_list[i]
                c_here, n_here = inside(c, channels, token), inside(n, state, token)
                if HAS_C:
                    dy_t = load_row(dy, token, dy_token, c, c_here)
                    C_t = load_row(C, token, C_token, n, n_here)
                    dh += C_t[:, None] * dy_t[None, :]
                    after = decayed + (delta_t * u_t)[None, :] * B_t[:, None]
                    put_row(dC, token, state_token, n, n_here, tl.sum(after * dy_t[None, :], 1), ADD)
                else:
                    here = n_in[:, None] & c_here[None, :]
                    dh += load_row(dy, token, dy_token, c[None, :] * state + n[:, None], here)
                put_row(dB, token, state_token, n, n_here, tl.sum(dh * (delta_t * u_t)[None, :], 1), ADD)
                through_decay = dh * decayed
                through_input = tl.sum(dh * B_t[:, None], 0)
                dA_tile += through_decay * delta_t[None, :]
                ddelta_t = tl.sum(through_decay * A_tile, 0) * 0.6931471805599453 + u_t * through_input
                ddelta_t *= softplus_slope(delta_t)
                du_t = through_input * delta_t
                if HAS_D:
                    du_t += D_row * dy_t
                    dD_row += dy_t * u_t
                dbias_row += ddelta_t
                put_row(du, token, row_token, c, c_here, du_t, ADD)
                put_row(ddelta, token, row_token, c, c_here, ddelta_t, ADD)
                dh *= decay
                if SEGMENTED:
                    dh = tl.where(step % segment == 0, 0.0, dh)

        own = (b * directions + k) * channels
        tl.store(dA + (b * directions + k) * state * (half_pitch * 2) + places, dA_tile, mask=tile)
        tl.store(dbias + own + c, dbias_row, mask=c_in)
        if HAS_D:
            tl.store(dD + own + c, dD_row, mask=c_in)


class _Launch(NamedTuple):
    """Tile sizes, chosen by timing Vim and VMamba shapes on an H200."""

    block_c: int
    block_n: int
    unroll: int
    warps: int
    stages: int


def _launch(channels: int, state: int, backward: bool) -> _Launch:
    block_n = 1 << (state - 1).bit_length()
    budget = 512 if backward else 1024  # state elements a warp holds: 16 or 32 registers a thread
    block_c = max(16, min(64, budget // block_n, 1 << (channels - 1).bit_length()))
    warps = max(1, min(8, block_n * block_c // budget))
    if block_n <= 2:
        return _Launch(block_c, block_n, unroll=4, warps=warps, stages=1)
    return _Launch(block_c, block_n, unroll=2 if backward else 1, warps=warps, stages=3)


def scan(args: ScanArguments) -> Tensor:
    repeats = order_facts(args.order, args.tokens).repeats
    # Rows visited twice are summed in float32.
    y = output_rows(
        args.order, args.tokens, args.output_shape, torch.float32 if repeats else args.u.dtype, args.u.device
    )
    launch = _launch(args.channels, args.state, backward=False)
    _run_forward(args, launch, y, checkpoints=None, add=repeats)
    return y.to(args.u.dtype)


def scan_backward(args: ScanArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    repeats = order_facts(args.order, args.tokens).repeats
    launch = _launch(args.channels, args.state, backward=True)
    blocks = triton.cdiv(args.channels, launch.block_c)
    batch, tokens, directions, channels = args.delta.shape
    pitch = _pitch(channels)
    shape = (batch, directions, triton.cdiv(args.steps, launch.unroll), args.state, pitch)
    checkpoints = torch.empty(shape, dtype=torch.float32, device=args.u.device)
    _run_forward(args, launch, None, checkpoints, add=False)

    def rows(like: Tensor, *shape: int) -> Tensor:
        dtype = torch.float32 if repeats else like.dtype
        return output_rows(args.order, tokens, shape, dtype, args.u.device)

    def sums(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=args.u.device)

    du, ddelta = (rows(like, *args.delta.shape) for like in (args.u, args.delta))
    dB, dC = (rows(args.A, blocks, batch, tokens, directions, args.state) for _ in range(2))
    dA, dD, dbias = sums(batch, directions, args.state, pitch), *(sums(batch, directions, channels) for _ in "12")
    C = args.B if args.C is None else args.C
    backward_kernel[(batch * directions * blocks,)](
        args.u, args.delta, _rates(args), args.B, C, *_small(args), checkpoints,
        gradient.contiguous(), du, ddelta, dA, dB, dC, dD, dbias,
        tokens, batch, directions, channels, args.state, args.steps, max(1, args.segment), blocks,
        _pitch(args.channels) // 2,
        *_strides(args),
        **_switches(args), ADD=repeats,
        BLOCK_C=launch.block_c, BLOCK_N=launch.block_n, UNROLL=launch.unroll, num_warps=launch.warps,
    )  # fmt: skip
    gradients = (
        du.sum(2, dtype=torch.float32) if args.shared_input else du,
        ddelta,
        dA.sum(0)[..., :channels].transpose(1, 2),
        dB.sum(0),
        dC.sum(0),
        dD.sum(0),
        dbias.sum(0),
    )
    return tuple(
        None if tensor is None else value.to(tensor.dtype).contiguous()
        for value, tensor in zip(gradients, args.tensors(), strict=True)
    )


def _run_forward(
    args: ScanArguments, launch: _Launch, y: Tensor | None, checkpoints: Tensor | None, *, add: bool
) -> None:
    blocks = triton.cdiv(args.channels, launch.block_c)
    unused = args.delta  # a pointer that the kernel does not follow
    C = args.B if args.C is None else args.C
    forward_kernel[(args.batch * args.directions * blocks,)](
        args.u, args.delta, _rates(args), args.B, C, *_small(args),
        unused if y is None else y, unused if checkpoints is None else checkpoints,
        args.tokens, args.directions, args.channels, args.state, args.steps, max(1, args.segment), blocks,
        _pitch(args.channels) // 2,
        *_strides(args),
        **_switches(args), ADD=add, CHECKPOINT=checkpoints is not None,
        BLOCK_C=launch.block_c, BLOCK_N=launch.block_n, UNROLL=launch.unroll, STAGES=launch.stages,
        num_warps=launch.warps,
    )  # fmt: skip


def _pitch(channels: int) -> int:
    """Row length of (state, channels) buffers: even, as `tile_offsets` asks."""
    return channels + channels % 2


def _rates(args: ScanArguments) -> Tensor:
    """A as (directions, state, pitch): channels run fastest, as in every other operand."""
    rates = args.A.float().transpose(1, 2)
    return torch.nn.functional.pad(rates, (0, args.channels % 2)).contiguous()


def _small(args: ScanArguments) -> list[Tensor]:
    """D, bias and order, each replaced by any tensor where it is absent (the kernel does not read it then)."""
    D, bias = (args.A if tensor is None else tensor.float().contiguous() for tensor in (args.D, args.delta_bias))
    return [D, bias, args.A if args.order is None else args.order.contiguous()]


def _switches(args: ScanArguments) -> dict[str, bool]:
    return {
        "HAS_ORDER": args.order is not None,
        "HAS_D": args.D is not None,
        "HAS_BIAS": args.delta_bias is not None,
        "HAS_C": args.C is not None,
        "SEGMENTED": args.segment > 0,
    }


def _strides(args: ScanArguments) -> list[int]:
    """(batch, token, direction) strides of u, delta, B, C; the last dimension is contiguous."""
    u = (args.u.stride(0), args.u.stride(1), 0) if args.shared_input else args.u.stride()[:3]
    C = args.B if args.C is None else args.C
    return [*u, *args.delta.stride()[:3], *args.B.stride()[:3], *C.stride()[:3]]


def _with_contiguous_rows(args: ScanArguments) -> ScanArguments:
    rows = {"u": args.u, "delta": args.delta, "B": args.B, "C": args.C}
    return args.replace(
        **{name: t.contiguous() for name, t in rows.items() if t is not None and t.stride(-1) != 1 and t.shape[-1] > 1}
    )


def _why_not(args: ScanArguments | None) -> str | None:
    return why_no_triton(*(() if args is None else args.tensors()))


BACKEND = Backend(
    "triton",
    lambda args: scan(_with_contiguous_rows(args)),
    lambda args, gradient: scan_backward(_with_contiguous_rows(args), gradient),
    _why_not,
)
