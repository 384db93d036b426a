"""The causal convolution on a GPU in Triton: one program makes a block of one direction's steps for some channels.

The backward takes two kernels: the first turns the gradient of the output into that of the weighted sums (through
silu) and adds up those of weight and bias per block of steps; the second walks the sums' gradient the other way. Both
add in a fixed order, so two runs are bit-equal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vssm_kernels.causal_conv1d.arguments import ConvArguments
from vssm_kernels.dispatch import Backend
from vssm_kernels.gpu import why_no_triton
from vssm_kernels.orders import order_facts, output_rows

try:
    import triton
    import triton.language as tl
except ImportError:  # why_no_triton says so
    triton = None

_STEPS, _CHANNELS, _WARPS = 32, 64, 4  # of one program

if triton is not None:

    @triton.jit
    def program_indices(directions, step_blocks, channel_blocks):
        """(batch, direction, step block, channel block) of this program, as 64-bit numbers."""
        program = tl.program_id(0).to(tl.int64)
        channel_block = program % channel_blocks
        program = program // channel_blocks
        step_block = program % step_blocks
        program = program // step_blocks
        return program // directions, program % directions, step_block, channel_block

    @triton.jit
    def tokens_at(order, k, step, steps):
        """The tokens at some steps as 64-bit numbers, -1 at empty steps and outside the walk."""
        inside = (step >= 0) & (step < steps)
        return tl.load(order + k * steps + step, mask=inside, other=-1).to(tl.int64)

    @triton.jit
    def load_rows(base, token, stride, c, channels):
        """(steps, channels) rows of some tokens in float32, zeros where there is no token."""
        mask = (token >= 0)[:, None] & (c < channels)[None, :]
        return tl.load(base + token[:, None] * stride + c[None, :], mask=mask, other=0.0).to(tl.float32)

    @triton.jit
    def store_rows(base, token, stride, c, channels, rows):
        mask = (token >= 0)[:, None] & (c < channels)[None, :]
        tl.store(base + token[:, None] * stride + c[None, :], rows.to(base.dtype.element_ty), mask=mask)

    @triton.jit
    def weighted_sums(
        x, x_token, weight, bias, order, k, step, c, channels, steps, HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr
    ):
        sums = tl.zeros((step.shape[0], c.shape[0]), tl.float32)
        if HAS_BIAS:
            sums += tl.load(bias + k * channels + c, mask=c < channels, other=0.0)[None, :]
        for j in tl.static_range(WIDTH):
            tap = tl.load(weight + (k * WIDTH + j) * channels + c, mask=c < channels, other=0.0)
            rows = load_rows(x, tokens_at(order, k, step - (WIDTH - 1) + j, steps), x_token, c, channels)
            sums += tap[None, :] * rows
        return sums

    @triton.jit
    def forward_kernel(
        x, weight, bias, order, y,
        tokens, directions, channels, steps, step_blocks, channel_blocks, x_batch, x_token,
        HAS_BIAS: tl.constexpr, SILU: tl.constexpr, WIDTH: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        b, k, step_block, channel_block = program_indices(directions, step_blocks, channel_blocks)
        step = step_block * STEPS + tl.arange(0, STEPS)
        c = channel_block * CHANNELS + tl.arange(0, CHANNELS)
        sums = weighted_sums(
            x + b * x_batch, x_token, weight, bias, order, k, step, c, channels, steps, HAS_BIAS, WIDTH
        )
        if SILU:
            sums *= tl.sigmoid(sums)
        y_token = directions * channels
        store_rows(
            y + b * tokens * y_token + k * channels, tokens_at(order, k, step, steps), y_token, c, channels, sums
        )

    @triton.jit
    def sums_backward_kernel(
        x, weight, bias, order, dy, dsums, dweight, dbias,
        tokens, directions, channels, steps, step_blocks, channel_blocks, x_batch, x_token,
        HAS_BIAS: tl.constexpr, SILU: tl.constexpr, WIDTH: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """dsums, step by step in float32, and this block's share of dweight and dbias."""
        b, k, step_block, channel_block = program_indices(directions, step_blocks, channel_blocks)
        step = step_block * STEPS + tl.arange(0, STEPS)
        c = channel_block * CHANNELS + tl.arange(0, CHANNELS)
        x += b * x_batch
        row = directions * channels
        dy += b * tokens * row + k * channels
        gradient = load_rows(dy, tokens_at(order, k, step, steps), row, c, channels)
        if SILU:
            sums = weighted_sums(x, x_token, weight, bias, order, k, step, c, channels, steps, HAS_BIAS, WIDTH)
            sigmoid = tl.sigmoid(sums)
            gradient *= sigmoid * (1.0 + sums * (1.0 - sigmoid))
        inside = tl.where(step < steps, step, -1)
        store_rows(dsums + (b * directions + k) * steps * channels, inside, channels, c, channels, gradient)
        share = (b * directions + k) * step_blocks + step_block
        tl.store(dbias + share * channels + c, tl.sum(gradient, 0), mask=c < channels)
        for j in tl.static_range(WIDTH):
            rows = load_rows(x, tokens_at(order, k, step - (WIDTH - 1) + j, steps), x_token, c, channels)
            tl.store(dweight + (share * WIDTH + j) * channels + c, tl.sum(gradient * rows, 0), mask=c < channels)

    @triton.jit
    def x_backward_kernel(
        weight, order, dsums, dx,
        tokens, directions, channels, steps, step_blocks, channel_blocks,
        WIDTH: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """Each direction's gradient of x: step l was read by tap j at step l + WIDTH - 1 - j."""
        b, k, step_block, channel_block = program_indices(directions, step_blocks, channel_blocks)
        step = step_block * STEPS + tl.arange(0, STEPS)
        c = channel_block * CHANNELS + tl.arange(0, CHANNELS)
        dsums += (b * directions + k) * steps * channels
        rows = tl.zeros((STEPS, CHANNELS), tl.float32)
        for j in tl.static_range(WIDTH):
            tap = tl.load(weight + (k * WIDTH + j) * channels + c, mask=c < channels, other=0.0)
            later = step + (WIDTH - 1) - j
            rows += tap[None, :] * load_rows(dsums, tl.where(later < steps, later, -1), channels, c, channels)
        row = directions * channels
        store_rows(dx + b * tokens * row + k * channels, tokens_at(order, k, step, steps), row, c, channels, rows)


def conv(args: ConvArguments) -> Tensor:
    x = _contiguous_rows(args.x)
    y = output_rows(args.order, args.x.shape[1], args.output_shape, x.dtype, x.device)
    forward_kernel[_grid(args)](
        x, *_weights(args), args.order.contiguous(), y, *_sizes(args), x.stride(0), x.stride(1), **_switches(args)
    )
    return y


def conv_backward(args: ConvArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, order, (weight, bias) = _contiguous_rows(args.x), args.order.contiguous(), _weights(args)
    batch, _, directions, channels = args.output_shape
    steps, width = order.shape[1], args.weight.shape[2]
    shares = batch, directions, triton.cdiv(steps, _STEPS)

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    dsums = floats(batch, directions, steps, channels)
    dweight, dbias = floats(*shares, width, channels), floats(*shares, channels)
    sums_backward_kernel[_grid(args)](
        x, weight, bias, order, gradient.contiguous(), dsums, dweight, dbias,
        *_sizes(args), x.stride(0), x.stride(1), **_switches(args),
    )  # fmt: skip
    dx = output_rows(order, args.x.shape[1], args.output_shape, device=x.device)
    x_backward_kernel[_grid(args)](
        weight, order, dsums, dx, *_sizes(args), WIDTH=width, STEPS=_STEPS, CHANNELS=_CHANNELS, num_warps=_WARPS
    )
    return (
        dx.sum(2).to(x.dtype),
        dweight.sum((0, 2)).transpose(1, 2).to(args.weight.dtype).contiguous(),
        None if args.bias is None else dbias.sum((0, 2)).to(args.bias.dtype),
    )


def _contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def _weights(args: ConvArguments) -> tuple[Tensor, Tensor]:
    """Weight as (directions, width, channels), and bias; the kernels do not follow the pointer where there is none."""
    weight = args.weight.float().transpose(1, 2).contiguous()
    return weight, weight if args.bias is None else args.bias.float().contiguous()


def _grid(args: ConvArguments) -> tuple[int]:
    batch, _, directions, channels = args.output_shape
    blocks = triton.cdiv(args.order.shape[1], _STEPS) * triton.cdiv(channels, _CHANNELS)
    return (batch * directions * blocks,)


def _sizes(args: ConvArguments) -> tuple[int, ...]:
    _, tokens, directions, channels = args.output_shape
    steps = args.order.shape[1]
    return tokens, directions, channels, steps, triton.cdiv(steps, _STEPS), triton.cdiv(channels, _CHANNELS)


def _switches(args: ConvArguments) -> dict[str, int]:
    return {
        "HAS_BIAS": args.bias is not None,
        "SILU": args.silu,
        "WIDTH": args.weight.shape[2],
        "STEPS": _STEPS,
        "CHANNELS": _CHANNELS,
        "num_warps": _WARPS,
    }


def _why_not(args: ConvArguments | None) -> str | None:
    reason = why_no_triton(*(() if args is None else args.tensors()))
    if reason is None and args is not None and order_facts(args.order, args.x.shape[1]).repeats:
        return "does not take an order that visits a token twice in one direction"
    return reason


BACKEND = Backend("triton", conv, conv_backward, _why_not)
