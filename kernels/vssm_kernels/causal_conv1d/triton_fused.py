"""The causal convolution on a GPU in Triton: one program, one warp, some channels of one direction.

Forward, a program computes one group of steps. It loads the rows of the group and the few before them, and only then
stores, so that many loads are in flight. Backward, a program takes the groups of its part of the steps from the last to
the first; the gradients passed back by later steps, and those of weight and bias, stay in registers. All sums are
float32 in a fixed order, so two runs are bit-equal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vssm_kernels.causal_conv1d.arguments import ConvArguments
from vssm_kernels.direction_sum import sum_directions
from vssm_kernels.gpu import Launcher, cdiv, triton_backend, why_no_triton
from vssm_kernels.orders import output_rows

try:
    import triton
    import triton.language as tl

    from vssm_kernels.triton_math import sigmoid
except ImportError:  # why_no_triton reports it
    triton = None

# Steps in flight and channels of one program: 4 channels a thread. More stages load later groups earlier.
_FORWARD = {"STEPS": 16, "CHANNELS": 128, "num_warps": 1}
_BACKWARD = {"STEPS": 4, "CHANNELS": 128, "STAGES": 1, "num_warps": 1}
_PROGRAMS = 1536  # the backward splits its walks into so many programs

if triton is not None:

    @triton.jit
    def token_at(order, step, steps):
        """The token of a step as a 64-bit number, -1 at empty steps and outside the walk."""
        return tl.load(order + step, mask=(step >= 0) & (step < steps), other=-1).to(tl.int64)

    @triton.jit
    def inside(c, channels, token):
        """Which channels exist; none where there is no token."""
        return c < tl.where(token >= 0, channels, 0)

    @triton.jit
    def load_row(base, token, stride, c, channels):
        """One token's row in float32, zeros where there is no token."""
        return tl.load(base + token * stride + c, mask=inside(c, channels, token), other=0.0).to(tl.float32)

    @triton.jit
    def store_row(base, token, stride, c, channels, row):
        tl.store(base + token * stride + c, row.to(base.dtype.element_ty), mask=inside(c, channels, token))

    @triton.jit
    def load_parameters(weight, bias, k, c, channels, HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr):
        """Direction k's WIDTH taps and its bias."""
        taps = ()
        for j in tl.static_range(WIDTH):
            tap = tl.load(weight + (k * channels + c) * WIDTH + j, mask=c < channels, other=0.0)
            taps = taps + (tap.to(tl.float32),)
        if HAS_BIAS:
            bias_row = tl.load(bias + k * channels + c, mask=c < channels, other=0.0).to(tl.float32)
        else:
            bias_row = tl.zeros_like(c).to(tl.float32)
        return taps, bias_row

    @triton.jit
    def load_group(x, x_token, order, first, steps, c, channels, WIDTH: tl.constexpr, STEPS: tl.constexpr):
        """Tokens and rows of x of the STEPS steps from `first`, and of the WIDTH - 1 before them."""
        tokens = ()
        rows = ()
        for i in tl.static_range(STEPS + WIDTH - 1):
            tokens = tokens + (token_at(order, first - (WIDTH - 1) + i, steps),)
        for i in tl.static_range(STEPS + WIDTH - 1):
            rows = rows + (load_row(x, tokens[i], x_token, c, channels),)
        return tokens, rows

    @triton.jit
    def weighted_sum(rows, i: tl.constexpr, taps, bias_row, WIDTH: tl.constexpr):
        total = bias_row
        for j in tl.static_range(WIDTH):
            total += taps[j] * rows[i + j]
        return total

    @triton.jit
    def forward_kernel(
        x, weight, bias, order, y, tokens, directions, channels, steps, x_batch, x_token,
        HAS_BIAS: tl.constexpr, SILU: tl.constexpr, WIDTH: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        channel_blocks = tl.cdiv(channels, CHANNELS)
        groups = tl.cdiv(steps, STEPS)
        program = tl.program_id(0)
        c = program % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
        program = program // channel_blocks
        first = program % groups * STEPS
        program = program // groups
        k, b = (program % directions).to(tl.int64), (program // directions).to(tl.int64)
        x += b * x_batch
        y_token = directions * channels
        y += b * tokens * y_token + k * channels
        taps, bias_row = load_parameters(weight, bias, k, c, channels, HAS_BIAS, WIDTH)
        token_list, rows = load_group(x, x_token, order + k * steps, first, steps, c, channels, WIDTH, STEPS)
        for i in tl.static_range(STEPS):
            total = weighted_sum(rows, i, taps, bias_row, WIDTH)
            if SILU:
                total *= sigmoid(total)
            store_row(y, token_list[i + WIDTH - 1], y_token, c, channels, total)

    @triton.jit
    def sum_gradients(
        x, x_token, dy, dy_token, order, first, steps, c, channels, taps, bias_row,
        SILU: tl.constexpr, WIDTH: tl.constexpr, STEPS: tl.constexpr,
    ):  # fmt: skip
        """Of the STEPS steps from `first`: tokens and rows as in `load_group`, and the gradients of the sums."""
        tokens, rows = load_group(x, x_token, order, first, steps, c, channels, WIDTH, STEPS)
        dsums = ()
        for i in tl.static_range(STEPS):
            dsums = dsums + (load_row(dy, tokens[i + WIDTH - 1], dy_token, c, channels),)
        if SILU:
            through_silu = ()
            for i in tl.static_range(STEPS):
                total = weighted_sum(rows, i, taps, bias_row, WIDTH)
                gate = sigmoid(total)
                through_silu = through_silu + (dsums[i] * gate * (1.0 + total * (1.0 - gate)),)
            dsums = through_silu
        return tokens, rows, dsums

    @triton.jit
    def backward_kernel(
        x, weight, bias, order, dy, dx, shares, tokens, directions, channels, steps, parts, x_batch, x_token,
        HAS_BIAS: tl.constexpr, SILU: tl.constexpr, WIDTH: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr,
        STAGES: tl.constexpr,
    ):  # fmt: skip
        """Each direction's gradient of x, and this part's share of those of weight and bias."""
        channel_blocks = tl.cdiv(channels, CHANNELS)
        program = tl.program_id(0)
        c = program % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
        share = program // channel_blocks
        part = share // directions % parts
        k, b = (share % directions).to(tl.int64), (share // directions // parts).to(tl.int64)
        x += b * x_batch
        order += k * steps
        row_token = directions * channels
        row = b * tokens * row_token + k * channels
        dy += row
        dx += row
        taps, bias_row = load_parameters(weight, bias, k, c, channels, HAS_BIAS, WIDTH)
        dtaps = ()
        for _ in tl.static_range(WIDTH):
            dtaps = dtaps + (tl.zeros((CHANNELS,), tl.float32),)
        dbias_row = tl.zeros((CHANNELS,), tl.float32)

        groups = tl.cdiv(tl.cdiv(steps, parts), STEPS)
        end = (part + 1) * groups * STEPS
        # The first gradients of the next part, computed here too: its steps read this part's rows.
        _, _, later = sum_gradients(
            x, x_token, dy, row_token, order, end, steps, c, channels, taps, bias_row, SILU, WIDTH, WIDTH
        )
        for back in tl.range(0, groups, num_stages=STAGES):
            token_list, rows, dsums = sum_gradients(
                x, x_token, dy, row_token, order, end - (back + 1) * STEPS, steps, c, channels, taps, bias_row,
                SILU, WIDTH, STEPS,
            )  # fmt: skip
            longer = ()
            for j in tl.static_range(WIDTH):
                dtap = dtaps[j]
                for i in tl.static_range(STEPS):
                    dtap += dsums[i] * rows[i + j]
                longer = longer + (dtap,)
            dtaps = longer
            for i in tl.static_range(STEPS):
                dbias_row += dsums[i]
            dsums = dsums + later
            for i in tl.static_range(STEPS):
                # Tap j read this step at WIDTH - 1 - j steps later.
                dx_row = taps[0] * dsums[i + WIDTH - 1]
                for j in tl.static_range(1, WIDTH):
                    dx_row += taps[j] * dsums[i + WIDTH - 1 - j]
                store_row(dx, token_list[i + WIDTH - 1], row_token, c, channels, dx_row)
            later = ()
            for i in tl.static_range(WIDTH):
                later = later + (dsums[i],)

        # Computed again, instead of held in registers during the walk.
        shares += (share // directions).to(tl.int64) * (directions * channels * (WIDTH + 1))
        own = share % directions * channels + c
        for j in tl.static_range(WIDTH):
            tl.store(shares + own * WIDTH + j, dtaps[j], mask=c < channels)
        tl.store(shares + directions * channels * WIDTH + own, dbias_row, mask=c < channels)


def plan_conv(args: ConvArguments, save: bool) -> Callable[[ConvArguments], tuple[Tensor, None]]:
    shape, dtype, device = args.output_shape, args.x.dtype, args.x.device
    grid = _grid(args, _FORWARD, cdiv(args.order.steps, _FORWARD["STEPS"]))
    launch = Launcher(forward_kernel, grid, **_numbers(args), **_FORWARD)

    def run(args: ConvArguments) -> tuple[Tensor, None]:
        y = output_rows(args.order, shape, dtype, device)
        launch(*_tensors(args), y)
        return y, None

    return run


def plan_conv_backward(args: ConvArguments, gradient: Tensor) -> Callable[[ConvArguments, Tensor], tuple]:
    batch, _, directions, channels = shape = args.output_shape
    groups = cdiv(args.order.steps, _BACKWARD["STEPS"])
    parts = min(groups, cdiv(_PROGRAMS, max(1, _grid(args, _BACKWARD, 1)[0])))
    taps, dtype, device = args.weight.numel(), args.x.dtype, args.x.device
    launch = Launcher(
        backward_kernel, _grid(args, _BACKWARD, parts), **_numbers(args), **_BACKWARD, parts=parts
    )  # fmt: skip

    def run(args: ConvArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
        shares = torch.empty((batch * parts, taps + directions * channels), dtype=torch.float32, device=device)
        dx = output_rows(args.order, shape, dtype, device)
        launch(*_tensors(args), gradient.contiguous(), dx, shares)
        total, weight, bias = shares.sum(0), args.weight, args.bias  # of all taps, then of the biases
        dweight = total[:taps].view(weight.shape).to(weight.dtype)
        dbias = None if bias is None else total[taps:].view(bias.shape).to(bias.dtype)
        return sum_directions(dx), dweight, dbias

    return run


def _contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def _tensors(args: ConvArguments) -> tuple[Tensor, ...]:
    """What both kernels take. Without bias its pointer is not followed."""
    weight = args.weight.contiguous()
    bias = weight if args.bias is None else args.bias.contiguous()
    return _contiguous_rows(args.x), weight, bias, args.order.table


def _numbers(args: ConvArguments) -> dict[str, int]:
    _, tokens, directions, channels = args.output_shape
    x = _contiguous_rows(args.x)
    return {
        "tokens": tokens,
        "directions": directions,
        "channels": channels,
        "steps": args.order.steps,
        "x_batch": x.stride(0),
        "x_token": x.stride(1),
        "HAS_BIAS": args.bias is not None,
        "SILU": args.silu,
        "WIDTH": args.width,
    }


def _grid(args: ConvArguments, launch: dict[str, int], parts: int) -> tuple[int]:
    batch, _, directions, channels = args.output_shape
    return (batch * directions * parts * cdiv(channels, launch["CHANNELS"]),)


def _why_not(args: ConvArguments | None) -> str | None:
    reason = why_no_triton(*(() if args is None else args.tensors()))
    if reason is None and args is not None and args.order.repeats:
        return "does not take an order that visits a token twice in one direction"
    return reason


BACKEND = triton_backend(plan_conv, plan_conv_backward, _why_not)
