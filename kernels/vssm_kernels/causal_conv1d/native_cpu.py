"""The causal convolution on a CPU in C (native.c)."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from vssm_kernels.causal_conv1d.arguments import ConvArguments
from vssm_kernels.compiler import Strides, channel_groups, float_rows, load_library, run_tasks, why_no_library
from vssm_kernels.dispatch import Backend, why_not_cpu
from vssm_kernels.orders import order_facts, output_rows

_SOURCE = Path(__file__).with_name("native.c")
_WIDTH_MAX = 16  # as in native.c


class _CArguments(ctypes.Structure):
    """conv_args of native.c."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("batch", "tokens", "directions", "channels")),
        *((n, ctypes.c_int64) for n in ("width", "steps", "groups", "silu", "add")),
        *((n, ctypes.c_void_p) for n in ("x", "weight", "bias", "zeros", "order")),
        ("sx", Strides),
        *((n, ctypes.c_void_p) for n in ("y", "dy", "dx", "dweight", "dbias")),
    ]


def conv(args: ConvArguments) -> Tensor:
    y = output_rows(args.order, args.x.shape[1], args.output_shape)
    _run("vssm_conv_forward", args, walks=y.shape[0] * y.shape[2], y=y)
    return y.to(args.x.dtype)


def conv_backward(args: ConvArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    batch, tokens, directions, channels = args.output_shape
    dx = torch.zeros(batch, tokens, channels)
    dweight = torch.zeros(batch, directions, args.weight.shape[2], channels)
    dbias = torch.zeros(batch, directions, channels)
    dy = gradient.float().contiguous()
    _run("vssm_conv_backward", args, walks=batch, dy=dy, dx=dx, dweight=dweight, dbias=dbias)
    dweight = dweight.sum(0).transpose(1, 2).to(args.weight.dtype).contiguous()
    return dx.to(args.x.dtype), dweight, None if args.bias is None else dbias.sum(0).to(args.bias.dtype)


def _run(name: str, args: ConvArguments, walks: int, **buffers: Tensor) -> None:
    """Call a C function over all tasks: the groups of channels of independent walks."""
    batch, tokens, directions, channels = args.output_shape
    groups = channel_groups(channels, walks)
    pointers = {
        "x": float_rows(args.x),
        "weight": args.weight.float().transpose(1, 2).contiguous(),
        "bias": torch.zeros(directions, channels) if args.bias is None else args.bias.float().contiguous(),
        "zeros": torch.zeros(channels),
        "order": args.order.contiguous(),
        **buffers,
    }
    facts = order_facts(args.order, tokens)  # refuses entries out of range, which C would not
    c_args = _CArguments(
        *(batch, tokens, directions, channels, args.weight.shape[2], args.order.shape[1], groups, int(args.silu)),
        add=facts.repeats,
        sx=Strides(pointers["x"].stride(0), pointers["x"].stride(1), 0),
        **{name: tensor.data_ptr() for name, tensor in pointers.items()},
    )
    run_tasks(load_library(_SOURCE), name, c_args, tasks=walks * groups)


def _why_not(args: ConvArguments | None) -> str | None:
    if args is not None:
        if (elsewhere := why_not_cpu(args.x)) is not None:
            return elsewhere
        if args.x.dtype == torch.float64:
            return "computes in float32; float64 inputs ask for more"
        if args.weight.shape[2] > _WIDTH_MAX:
            return f"takes at most {_WIDTH_MAX} taps; the weight has {args.weight.shape[2]}"
    return why_no_library(_SOURCE)


BACKEND = Backend("native", conv, conv_backward, _why_not)
