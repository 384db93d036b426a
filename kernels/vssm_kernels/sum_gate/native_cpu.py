"""The sum over directions and the gate on a CPU in C (native.c): one pass over memory each way."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from vssm_kernels.buffers import address, floats
from vssm_kernels.compiler import Strides, float_rows, load_library, run_tasks, why_no_library
from vssm_kernels.dispatch import Backend, why_not_cpu
from vssm_kernels.saturation import saturate
from vssm_kernels.sum_gate.arguments import GateArguments

_SOURCE = Path(__file__).with_name("native.c")


class _CArguments(ctypes.Structure):
    """gate_args of native.c."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("tokens", "directions", "channels")),
        ("scale", ctypes.c_double),
        *((n, ctypes.c_void_p) for n in ("y", "z")),
        ("sz", Strides),
        *((n, ctypes.c_void_p) for n in ("out", "summed", "gradient", "dsum", "dz")),
    ]


def gate(args: GateArguments, save: bool = False) -> tuple[Tensor, Tensor | None]:
    """The output in y's dtype, and the sum in float32 where there is a gate and more than one direction."""
    y = args.y.float().contiguous()
    batch, tokens, directions, channels = y.shape
    out = floats(batch, tokens, channels)
    summed = floats(batch, tokens, 1, channels) if save and args.saved(torch.float32) else None
    _run("vssm_gate_forward", args, out.shape, directions, y=y, out=out, summed=summed)
    return saturate(out, args.y.dtype), summed


def gate_backward(args: GateArguments, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradients of the sum over the directions, (batch, tokens, 1, channels), and of z."""
    if args.z is None:
        return (gradient if args.scale == 1.0 else gradient * args.scale).unsqueeze(2), None
    shape = args.z.shape
    summed, gradient = args.y.float().contiguous(), gradient.float().contiguous()
    dsum, dz = floats(*summed.shape), floats(*shape)
    _run("vssm_gate_backward", args, shape, 1, summed=summed, gradient=gradient, dsum=dsum, dz=dz)
    return dsum, dz.to(args.z.dtype)


def _run(
    name: str,
    args: GateArguments,
    shape: tuple[int, ...],
    directions: int,
    *,
    y: Tensor | None = None,
    **buffers: Tensor | None,
) -> None:
    """Call a C function over all tokens; `shape` is (batch, tokens, channels)."""
    batch, tokens, channels = shape
    size = batch * tokens * channels
    z, sz = args.z, Strides()
    if z is not None:
        z = float_rows(z)
        batch_stride, token_stride, _ = z.stride()
        sz = Strides(batch_stride, token_stride)
    c_args = _CArguments(
        tokens=tokens,
        directions=directions,
        channels=channels,
        scale=args.scale,
        y=address("y", y, size * directions),
        z=address("z", z, size, rows=True),
        sz=sz,
        **{name: address(name, buffer, size) for name, buffer in buffers.items()},
    )
    run_tasks(load_library(_SOURCE), name, c_args, tasks=batch * tokens)


def _why_not(args: GateArguments | None) -> str | None:
    if args is not None and (reason := why_not_cpu(*args.tensors())) is not None:
        return reason
    return why_no_library(_SOURCE)


BACKEND = Backend("native", gate, gate_backward, _why_not, lambda args: args.saved(torch.float32))
