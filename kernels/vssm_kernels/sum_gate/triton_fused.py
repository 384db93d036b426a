"""The gate on a GPU in Triton: one pass over memory forward, one backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vssm_kernels.direction_sum import TILE, even_rows, sum_directions, tile_grid
from vssm_kernels.gpu import Launcher, triton_backend, why_no_triton
from vssm_kernels.sum_gate.arguments import GateArguments

try:
    import triton
    import triton.language as tl

    from vssm_kernels.direction_sum import direction_sum, tile
    from vssm_kernels.triton_math import saturate, sigmoid
except ImportError:  # why_no_triton reports it
    triton = None

if triton is not None:

    @triton.jit
    def forward_kernel(
        y, z, out, summed, scale, rows, channels, z_token,
        DIRECTIONS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        row, c, mask = tile(rows, channels, ROWS, CHANNELS)
        gate = tl.load(z + row * z_token + c, mask=mask, other=0.0).to(tl.float32)
        total = direction_sum(y, row, c, mask, channels, DIRECTIONS)
        if summed is not None:
            tl.store(summed + row * channels + c, saturate(total, summed.dtype.element_ty), mask=mask)
        gated = scale * total * gate * sigmoid(gate)
        tl.store(out + row * channels + c, saturate(gated, out.dtype.element_ty), mask=mask)

    @triton.jit
    def backward_kernel(
        gradient, summed, z, dsum, dz, out, scale, rows, channels, z_token,
        ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """dsum, the gradient of the sum over directions, and dz; and the gate's output once more."""
        row, c, mask = tile(rows, channels, ROWS, CHANNELS)
        place = row * channels + c
        dout = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32) * scale
        gate = tl.load(z + row * z_token + c, mask=mask, other=0.0).to(tl.float32)
        total = tl.load(summed + place, mask=mask, other=0.0).to(tl.float32)
        opened = sigmoid(gate)
        silu = gate * opened
        if out is not None:
            tl.store(out + place, saturate(scale * total * silu, out.dtype.element_ty), mask=mask)
        tl.store(dsum + place, (dout * silu).to(dsum.dtype.element_ty), mask=mask)
        slope = opened + silu * (1.0 - opened)
        tl.store(dz + place, (dout * total * slope).to(dz.dtype.element_ty), mask=mask)


def plan_gate(args: GateArguments, save: bool) -> Callable[[GateArguments], tuple[Tensor, Tensor | None]]:
    """The output, and the sum over directions, both in y's dtype."""
    scale = args.scale
    if args.z is None:
        return lambda args: (_scaled(sum_directions(args.y.contiguous()), scale), None)
    batch, tokens, directions, channels = args.y.shape
    shape, dtype, device, saves = args.z.shape, args.y.dtype, args.y.device, save and directions > 1
    rows = batch * tokens
    launch = Launcher(
        forward_kernel,
        tile_grid(rows, channels),
        scale=scale,
        rows=rows,
        channels=channels,
        z_token=even_rows(args.z).stride(1),
        DIRECTIONS=directions,
        **TILE,
    )

    def run(args: GateArguments) -> tuple[Tensor, Tensor | None]:
        out, summed = torch.empty(shape, dtype=dtype, device=device), None
        if saves:
            summed = torch.empty((batch, tokens, 1, channels), dtype=dtype, device=device)
        launch(args.y.contiguous(), even_rows(args.z), out, summed)
        return out, summed

    return run


def plan_gate_backward(args: GateArguments, gradient: Tensor) -> Callable[[GateArguments, Tensor], tuple]:
    """The gradients of the sum over the directions, (batch, tokens, 1, channels), and of z."""
    scale = args.scale
    if args.z is None:
        return lambda args, gradient: (_scaled(gradient, scale).unsqueeze(2), None)
    run = plan_gate_again(args, gradient, with_output=False)
    return lambda args, gradient: run(args, gradient)[1:]


def plan_gate_again(
    args: GateArguments, gradient: Tensor, with_output: bool = True
) -> Callable[[GateArguments, Tensor], tuple[Tensor | None, Tensor, Tensor]]:
    """The output once more, from the sum over the directions, and both gradients."""
    batch, tokens, channels = shape = args.z.shape
    rows, z_token, device = batch * tokens, even_rows(args.z).stride(1), args.z.device
    launch = Launcher(
        backward_kernel,
        tile_grid(rows, channels),
        scale=args.scale,
        rows=rows,
        channels=channels,
        z_token=z_token,
        **TILE,
    )

    def run(args: GateArguments, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        z, summed = even_rows(args.z), args.y.contiguous()
        out = torch.empty(shape, dtype=summed.dtype, device=device) if with_output else None
        dsum = torch.empty((batch, tokens, 1, channels), dtype=summed.dtype, device=device)
        dz = torch.empty(shape, dtype=z.dtype, device=device)
        launch(gradient.contiguous(), summed, z, dsum, dz, out)
        return out, dsum, dz

    return run


def _scaled(total: Tensor, scale: float) -> Tensor:
    return total if scale == 1.0 else total * scale


def _why_not(args: GateArguments | None) -> str | None:
    return why_no_triton(*(() if args is None else args.tensors()))


BACKEND = triton_backend(plan_gate, plan_gate_backward, _why_not, lambda args: args.saved(args.y.dtype))
