"""The sum over directions and the gate on a CPU in C (native.c): one pass over memory each way."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vssm_kernels.compiler import Strides, float_rows, load_library, run_tasks, why_no_library
from vssm_kernels.dispatch import Backend, why_not_cpu, why_not_plain
from vssm_kernels.saturation import saturate
from vssm_kernels.sum_gate.reference import GateArguments

_SOURCE = Path(__file__).with_name("native.c")


class _CArguments(ctypes.Structure):
    """gate_args of native.c."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("tokens", "directions", "channels")),
        ("scale", ctypes.c_double),
        *((n, ctypes.c_void_p) for n in ("y", "z")),
        ("sz", Strides),
        *((n, ctypes.c_void_p) for n in ("out", "gradient", "dsum", "dz")),
    ]


class SumGate(torch.autograd.Function):
    """`sum_gate`; y and z are kept for the backward, the sum is made again."""

    @staticmethod
    def forward(y: Tensor, z: Tensor | None, scale: float) -> Tensor:
        out = torch.empty(*y.shape[:2], y.shape[3])
        _run("vssm_gate_forward", y, z, scale, out=out)
        return saturate(out, y.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        y, z, ctx.scale = inputs
        ctx.shape = y.shape
        ctx.save_for_backward(*((y, z) if z is not None else ()))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        saved = ctx.saved_tensors  # once: under activation checkpointing a second look would recompute
        if not saved:
            return (gradient * ctx.scale).unsqueeze(2).expand(ctx.shape), None, None
        y, z = saved
        dsum, dz = torch.empty(z.shape), torch.empty(z.shape)
        _run("vssm_gate_backward", y, z, ctx.scale, gradient=gradient.float().contiguous(), dsum=dsum, dz=dz)
        return dsum.to(y.dtype).unsqueeze(2).expand(y.shape), dz.to(z.dtype), None


def _run(name: str, y: Tensor, z: Tensor | None, scale: float, **buffers: Tensor) -> None:
    """Call a C function over all tokens."""
    batch, tokens, directions, channels = y.shape
    pointers = {"y": y.float().contiguous(), **buffers}
    sz = Strides()
    if z is not None:
        pointers["z"] = z = float_rows(z)
        sz = Strides(z.stride(0), z.stride(1), 0)
    addresses = {name: tensor.data_ptr() for name, tensor in pointers.items()}
    c_args = _CArguments(tokens, directions, channels, scale, sz=sz, **addresses)
    run_tasks(load_library(_SOURCE), name, c_args, tasks=batch * tokens)


def _why_not(args: GateArguments | None) -> str | None:
    if args is not None:
        if (reason := why_not_cpu(args.y) or why_not_plain(args.y, args.z)) is not None:
            return reason
        if any(tensor is not None and tensor.dtype == torch.float64 for tensor in (args.y, args.z)):
            return "computes in float32; float64 inputs ask for more"
    return why_no_library(_SOURCE)


BACKEND = Backend("native", lambda args: SumGate.apply(*args), None, _why_not)
