"""The norm of summed directions on a CPU in C (native.c): one pass over memory each way."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from vssm_kernels.buffers import address, floats
from vssm_kernels.compiler import load_library, run_tasks, why_no_library
from vssm_kernels.dispatch import Backend, why_not_cpu
from vssm_kernels.sum_norm import reference
from vssm_kernels.sum_norm.arguments import NormArguments

_SOURCE = Path(__file__).with_name("native.c")
_SHARES_MAX = 64  # tasks of the backward, whatever the number of threads


class _CArguments(ctypes.Structure):
    """norm_args of native.c."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("rows", "directions", "channels", "center", "shares")),
        ("eps", ctypes.c_double),
        *((n, ctypes.c_void_p) for n in ("x", "weight", "bias", "y", "merged", "dy", "dx", "dweight", "dbias")),
    ]


def norm(args: NormArguments, save: bool = False) -> tuple[Tensor, Tensor | None]:
    """The output in args.dtype and, where there are several directions, their sum in float32."""
    if _is_torchs_own(args):
        return reference.norm(args)
    x, directions, sums = args.x, args.directions, None
    if directions > 1 and x.dtype != torch.float32:  # the sum is rounded to x's dtype
        sums, directions = args.summed().float(), 1
        x = sums
    x, shape = x.float().contiguous(), x.shape
    y = floats(*shape[:-2], shape[-1]) if args.merge else floats(*shape)
    merged = None
    if save and directions > 1:
        merged = sums = floats(*shape[:-2], 1, shape[-1])
    _run("vssm_norm_forward", args, x, directions, y=y, merged=merged)
    return y.to(args.dtype), sums if save else None


def norm_backward(args: NormArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of x, of one direction where it has any, and of weight and bias."""
    x, dy = args.x.float().contiguous(), gradient.float().contiguous()
    channels = x.shape[-1]
    shares = min(_SHARES_MAX, x.numel() // channels)
    dx, dweight, dbias = floats(*x.shape), *floats(2, shares, channels, zero=True)
    _run("vssm_norm_backward", args, x, 1, shares, dy=dy, dx=dx, dweight=dweight, dbias=dbias)
    dweight = None if args.weight is None else dweight.sum(0).to(args.weight.dtype)
    return dx.to(args.x.dtype), dweight, None if args.bias is None else dbias.sum(0).to(args.bias.dtype)


def _is_torchs_own(args: NormArguments) -> bool:
    """Torch's layer norm is compiled too, and faster than this one where there is nothing to sum."""
    return args.center and not args.merge


def _run(
    name: str,
    args: NormArguments,
    x: Tensor,
    directions: int,
    shares: int = 0,
    *,
    dweight: Tensor | None = None,
    dbias: Tensor | None = None,
    **rows: Tensor | None,
) -> None:
    """Call a C function over all rows, or shares of them; no pointer where a buffer is None."""
    channels = x.shape[-1]
    size = x.numel() // directions
    weight, bias = (None if tensor is None else tensor.float().contiguous() for tensor in (args.weight, args.bias))
    if weight is None:
        weight = torch.ones(channels, dtype=torch.float32, device="cpu")
    if bias is None:
        bias = floats(channels, zero=True)
    c_args = _CArguments(
        rows=size // channels,
        directions=directions,
        channels=channels,
        center=args.center,
        shares=shares,
        eps=args.eps,
        x=address("x", x, size * directions),
        weight=address("weight", weight, channels),
        bias=address("bias", bias, channels),
        dweight=address("dweight", dweight, shares * channels),
        dbias=address("dbias", dbias, shares * channels),
        **{name: address(name, tensor, size) for name, tensor in rows.items()},
    )
    run_tasks(load_library(_SOURCE), name, c_args, tasks=shares or size // channels)


def _why_not(args: NormArguments | None) -> str | None:
    if args is not None:
        if (reason := why_not_cpu(*args.tensors())) is not None:
            return reason
        if args.x.numel() == 0:
            return "there is nothing to norm"
        if args.groups > 1 and not _is_torchs_own(args):
            return "norms all channels of a row together"
    return why_no_library(_SOURCE)


BACKEND = Backend(
    "native", norm, norm_backward, _why_not, lambda args: args.saved(torch.float32), is_recorded=_is_torchs_own
)
