"""The norm of summed directions on a CPU in C (native.c): one pass over memory each way."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from vssm_kernels.compiler import load_library, run_tasks, why_no_library
from vssm_kernels.dispatch import Backend, why_not_cpu, why_not_plain
from vssm_kernels.saturation import saturate
from vssm_kernels.sum_norm import reference
from vssm_kernels.sum_norm.arguments import NormArguments
from vssm_kernels.sum_norm.autograd import Kernels, differentiable

_SOURCE = Path(__file__).with_name("native.c")
_SHARES = 64  # tasks of the backward at most, whatever the number of threads


class _CArguments(ctypes.Structure):
    """norm_args of native.c."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("rows", "directions", "channels", "center", "shares")),
        ("eps", ctypes.c_double),
        *((n, ctypes.c_void_p) for n in ("x", "weight", "bias", "y", "merged", "dy", "dx", "dweight", "dbias")),
    ]


def norm(args: NormArguments) -> Tensor:
    """(..., channels), in args.dtype."""
    if args.center and not args.merge:  # torch's own layer norm is compiled, and faster than this one
        return reference.norm(args)
    return differentiable(Kernels(_forward, _backward), args)


def _forward(args: NormArguments, save: bool) -> tuple[Tensor, Tensor | None]:
    """The output, and where asked for the rows that were normed, in float32."""
    x = args.x
    if args.merge and x.dtype != torch.float32:  # the sum is rounded to x's dtype
        x = saturate(x.sum(-2, keepdim=True, dtype=torch.float32), x.dtype)
    x = x.float().contiguous()
    directions = x.shape[-2] if args.merge else 1
    y = torch.empty((*x.shape[:-2], x.shape[-1]) if args.merge else x.shape)
    merged = {"merged": torch.empty_like(y)} if save and directions > 1 else {}
    how = {"eps": args.eps, "center": args.center, "weight": args.weight, "bias": args.bias}
    _run("vssm_norm_forward", x, directions=directions, **how, tasks=y.numel() // y.shape[-1], y=y, **merged)
    return y.to(args.dtype), x.view(y.shape) if directions == 1 else merged.get("merged")


def _backward(
    gradient: Tensor, rows: Tensor, weight: Tensor | None, eps: float, center: bool, has_bias: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of the normed rows, and of weight and bias, (2, channels)."""
    channels = rows.shape[-1]
    shares = min(_SHARES, rows.numel() // channels)
    dx, parameters = torch.empty(rows.shape), torch.zeros(2, shares, channels)
    out = {"dx": dx, "dweight": parameters[0], "dbias": parameters[1]}
    how = {"eps": eps, "center": center, "weight": weight, "shares": shares}
    _run("vssm_norm_backward", rows, **how, tasks=shares, dy=gradient.float().contiguous(), **out)
    return dx, parameters.sum(1)


def _run(
    name: str,
    x: Tensor,
    *,
    eps: float,
    center: bool,
    weight: Tensor | None,
    tasks: int,
    bias: Tensor | None = None,
    directions: int = 1,
    shares: int = 0,
    **buffers: Tensor,
) -> None:
    channels = x.shape[-1]
    pointers = {
        "x": x,
        "weight": torch.ones(channels) if weight is None else weight.float().contiguous(),
        "bias": torch.zeros(channels) if bias is None else bias.float().contiguous(),
        **buffers,
    }
    addresses = {name: tensor.data_ptr() for name, tensor in pointers.items()}
    rows = x.numel() // (directions * channels)
    c_args = _CArguments(rows, directions, channels, center, shares, eps, **addresses)
    run_tasks(load_library(_SOURCE), name, c_args, tasks)


def _why_not(args: NormArguments | None) -> str | None:
    if args is not None:
        tensors = args.tensors()
        if (reason := why_not_cpu(args.x) or why_not_plain(*tensors)) is not None:
            return reason
        if args.x.numel() == 0:
            return "there is nothing to norm"
        if any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors):
            return "computes in float32; float64 inputs ask for more"
    return why_no_library(_SOURCE)


BACKEND = Backend("native", norm, None, _why_not)
