"""The gate on a GPU in Triton: one pass over memory forward, one backward."""

from __future__ import annotations

import torch
from torch import Tensor

from vssm_kernels.direction_sum import TILE, sum_directions, tile_grid
from vssm_kernels.gpu import launch, signature, triton_backend, why_no_triton
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
        gradient, summed, z, dsum, dz, scale, rows, channels, z_token,
        ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """dsum, the gradient of the sum over directions, and dz."""
        row, c, mask = tile(rows, channels, ROWS, CHANNELS)
        place = row * channels + c
        dout = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32) * scale
        gate = tl.load(z + row * z_token + c, mask=mask, other=0.0).to(tl.float32)
        total = tl.load(summed + place, mask=mask, other=0.0).to(tl.float32)
        opened = sigmoid(gate)
        silu = gate * opened
        tl.store(dsum + place, (dout * silu).to(dsum.dtype.element_ty), mask=mask)
        slope = opened + silu * (1.0 - opened)
        tl.store(dz + place, (dout * total * slope).to(dz.dtype.element_ty), mask=mask)


def gate(args: GateArguments, save: bool = False) -> tuple[Tensor, Tensor | None]:
    """The output, and the sum over directions, both in y's dtype."""
    y, z, scale = args.y.contiguous(), args.z, args.scale
    if z is None:
        total = sum_directions(y)
        return total if scale == 1.0 else total * scale, None
    z = _even_rows(z)
    batch, tokens, directions, channels = y.shape
    out = torch.empty(z.shape, dtype=y.dtype, device=y.device)
    summed = None
    if save and directions > 1:
        summed = torch.empty(batch, tokens, 1, channels, dtype=y.dtype, device=y.device)
    rows = batch * tokens
    launch(
        forward_kernel,
        tile_grid(rows, channels),
        (*signature(y, z, summed), scale),
        {"y": y, "z": z, "out": out, "summed": summed},
        lambda: {
            "scale": scale,
            "rows": rows,
            "channels": channels,
            "z_token": z.stride(1),
            "DIRECTIONS": directions,
            **TILE,
        },
    )
    return out, summed


def gate_backward(args: GateArguments, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradients of the sum over the directions, (batch, tokens, 1, channels), and of z."""
    if args.z is None:
        return (gradient if args.scale == 1.0 else gradient * args.scale).unsqueeze(2), None
    z, summed = _even_rows(args.z), args.y.contiguous()
    dsum = torch.empty(summed.shape, dtype=summed.dtype, device=summed.device)
    dz = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    rows, channels = z[..., 0].numel(), z.shape[2]
    gradient = gradient.contiguous()
    launch(
        backward_kernel,
        tile_grid(rows, channels),
        (*signature(gradient, summed, z), args.scale),
        {"gradient": gradient, "summed": summed, "z": z, "dsum": dsum, "dz": dz},
        lambda: {"scale": args.scale, "rows": rows, "channels": channels, "z_token": z.stride(1), **TILE},
    )
    return dsum, dz


def _even_rows(z: Tensor) -> Tensor:
    """z itself where all its rows are one stride apart, as in half of a projection; else a copy."""
    batch_stride, token_stride, channel_stride = z.stride()
    even = channel_stride == 1 and batch_stride == z.shape[1] * token_stride
    return z if even else z.contiguous()


def _why_not(args: GateArguments | None) -> str | None:
    return why_no_triton(*(() if args is None else args.tensors()))


BACKEND = triton_backend(gate, gate_backward, _why_not, lambda args: args.saved(args.y.dtype))
