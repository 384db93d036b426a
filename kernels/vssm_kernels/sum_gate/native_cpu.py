"""The sum over directions and the gate on a CPU in C (native.c): one pass over memory each way."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from vssm_kernels.compiler import Strides, float_rows, load_library, run_tasks, why_no_library
from vssm_kernels.dispatch import Backend, why_not_cpu, why_not_plain
from vssm_kernels.saturation import saturate
from vssm_kernels.sum_gate.autograd import Kernels, differentiable
from vssm_kernels.sum_gate.reference import GateArguments

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


def gate(args: GateArguments) -> Tensor:
    """(batch, tokens, channels), in y's dtype."""
    return differentiable(Kernels(_forward, _backward), args)


def _forward(args: GateArguments, save: bool) -> tuple[Tensor, Tensor | None]:
    """The output, and the sum in float32."""
    z, scale, y = args.z, args.scale, args.y.float().contiguous()
    out = torch.empty(*y.shape[:2], y.shape[3])
    summed = torch.empty_like(out) if save and z is not None else None
    _run("vssm_gate_forward", out.shape, z, scale, directions=y.shape[2], y=y, out=out, summed=summed)
    return saturate(out, args.y.dtype), summed


def _backward(gradient: Tensor, summed: Tensor, z: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out = {"dsum": torch.empty(summed.shape), "dz": torch.empty(summed.shape)}
    _run("vssm_gate_backward", summed.shape, z, scale, summed=summed, gradient=gradient.float().contiguous(), **out)
    return out["dsum"].to(gradient.dtype), out["dz"].to(z.dtype)


def _run(
    name: str, shape: torch.Size, z: Tensor | None, scale: float, *, directions: int = 1, **buffers: Tensor | None
) -> None:
    """Call a C function over all tokens of (batch, tokens, channels); no pointer where a buffer is None."""
    batch, tokens, channels = shape
    sz = Strides()
    if z is not None:
        buffers["z"] = z = float_rows(z)
        sz = Strides(z.stride(0), z.stride(1), 0)
    addresses = {name: buffer.data_ptr() for name, buffer in buffers.items() if buffer is not None}
    c_args = _CArguments(tokens, directions, channels, scale, sz=sz, **addresses)
    run_tasks(load_library(_SOURCE), name, c_args, tasks=batch * tokens)


def _why_not(args: GateArguments | None) -> str | None:
    if args is not None:
        if (reason := why_not_cpu(args.y) or why_not_plain(args.y, args.z)) is not None:
            return reason
        if any(tensor is not None and tensor.dtype == torch.float64 for tensor in (args.y, args.z)):
            return "computes in float32; float64 inputs ask for more"
    return why_no_library(_SOURCE)


BACKEND = Backend("native", gate, None, _why_not)
