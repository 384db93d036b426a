"""The gate on a GPU in Triton: one pass over memory forward, one backward."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vssm_kernels.direction_sum import TILE, sum_directions, tile_grid
from vssm_kernels.dispatch import Backend
from vssm_kernels.gpu import why_no_triton, why_not_by_hand
from vssm_kernels.sum_gate.reference import GateArguments

try:
    import triton
    import triton.language as tl

    from vssm_kernels.direction_sum import direction_sum, tile
    from vssm_kernels.triton_math import sigmoid
except ImportError:  # why_no_triton says so
    triton = None

if triton is not None:

    @triton.jit
    def forward_kernel(
        y, z, out, scale, rows, channels, z_token,
        DIRECTIONS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        row, c, mask = tile(rows, channels, ROWS, CHANNELS)
        gate = tl.load(z + row * z_token + c, mask=mask, other=0.0).to(tl.float32)
        total = direction_sum(y, row, c, mask, channels, DIRECTIONS)
        gated = scale * total * gate * sigmoid(gate)
        tl.store(out + row * channels + c, gated.to(out.dtype.element_ty), mask=mask)

    @triton.jit
    def backward_kernel(
        gradient, y, z, dsum, dz, scale, rows, channels, z_token,
        DIRECTIONS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """dsum, the gradient that every direction receives, and dz."""
        row, c, mask = tile(rows, channels, ROWS, CHANNELS)
        place = row * channels + c
        dout = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32) * scale
        gate = tl.load(z + row * z_token + c, mask=mask, other=0.0).to(tl.float32)
        total = direction_sum(y, row, c, mask, channels, DIRECTIONS)
        opened = sigmoid(gate)
        silu = gate * opened
        tl.store(dsum + place, (dout * silu).to(dsum.dtype.element_ty), mask=mask)
        slope = opened + silu * (1.0 - opened)
        tl.store(dz + place, (dout * total * slope).to(dz.dtype.element_ty), mask=mask)


class Sum(torch.autograd.Function):
    """`sum_gate` without z and scale: every direction receives the gradient of the sum, which lies in memory once."""

    @staticmethod
    def forward(y: Tensor) -> Tensor:
        return sum_directions(y.contiguous())

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.directions = inputs[0].shape[2]

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.unsqueeze(2).expand(-1, -1, ctx.directions, -1)


class SumGate(torch.autograd.Function):
    """`sum_gate`, as one kernel each way; y and z are kept for the backward, the sum is made again."""

    @staticmethod
    def forward(y: Tensor, z: Tensor, scale: float) -> Tensor:
        y, z = y.contiguous(), _even_rows(z)
        out = torch.empty(z.shape, dtype=y.dtype, device=y.device)
        _launch(forward_kernel, (y, z, out), scale, y, z)
        return out

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        y, z, ctx.scale = inputs
        ctx.save_for_backward(y, z)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        y, z = ctx.saved_tensors
        directions = y.shape[2]
        y, z = y.contiguous(), _even_rows(z)
        dsum = torch.empty(z.shape, dtype=y.dtype, device=y.device)
        dz = torch.empty(z.shape, dtype=z.dtype, device=y.device)
        _launch(backward_kernel, (gradient.contiguous(), y, z, dsum, dz), ctx.scale, y, z)
        return dsum.unsqueeze(2).expand(-1, -1, directions, -1), dz, None


def _even_rows(z: Tensor) -> Tensor:
    """z itself where all its rows are one stride apart, as in half of a projection; else a copy."""
    batch_stride, token_stride, channel_stride = z.stride()
    even = channel_stride == 1 and batch_stride == z.shape[1] * token_stride
    return z if even else z.contiguous()


def _launch(kernel, tensors: tuple[Tensor, ...], scale: float, y: Tensor, z: Tensor) -> None:
    batch, tokens, directions, channels = y.shape
    rows = batch * tokens
    kernel[tile_grid(rows, channels)](*tensors, scale, rows, channels, z.stride(1), directions, **TILE)


def _why_not(args: GateArguments | None) -> str | None:
    if args is None:
        return why_no_triton()
    return why_not_by_hand(args.y, args.z)


def _forward(args: GateArguments) -> Tensor:
    if args.z is not None:
        return SumGate.apply(*args)
    total = Sum.apply(args.y)
    return total if args.scale == 1.0 else total * args.scale


BACKEND = Backend("triton", _forward, None, _why_not)
