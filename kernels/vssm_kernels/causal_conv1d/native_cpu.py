"""The causal convolution on a CPU in C (native.c)."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from vssm_kernels.buffers import address, floats
from vssm_kernels.causal_conv1d.arguments import ConvArguments
from vssm_kernels.compiler import Strides, channel_bands, float_rows, load_library, run_tasks, why_no_library
from vssm_kernels.dispatch import Backend, why_not_cpu
from vssm_kernels.orders import output_rows

_SOURCE = Path(__file__).with_name("native.c")
_WIDTH_MAX = 16  # as in native.c


class _CArguments(ctypes.Structure):
    """conv_args of native.c."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("batch", "tokens", "directions", "channels")),
        *((n, ctypes.c_int64) for n in ("width", "steps", "bands", "silu", "add")),
        *((n, ctypes.c_void_p) for n in ("x", "weight", "bias", "zeros", "order")),
        ("sx", Strides),
        *((n, ctypes.c_void_p) for n in ("y", "dy", "dx", "dweight", "dbias")),
    ]


def conv(args: ConvArguments, save: bool = False) -> tuple[Tensor, None]:
    y = output_rows(args.order, args.output_shape, torch.float32, "cpu")
    batch, _, directions, _ = y.shape
    _run("vssm_conv_forward", args, walks=batch * directions, y=y)
    return y.to(args.x.dtype), None


def conv_backward(args: ConvArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    batch, tokens, directions, channels = args.output_shape
    dx = floats(batch, tokens, channels, zero=True)
    dweight = floats(batch, directions, args.width, channels, zero=True)
    dbias = floats(batch, directions, channels, zero=True)
    dy = gradient.float().contiguous()
    _run("vssm_conv_backward", args, walks=batch, dy=dy, dx=dx, dweight=dweight, dbias=dbias)
    dweight = dweight.sum(0).transpose(1, 2).to(args.weight.dtype).contiguous()
    return dx.to(args.x.dtype), dweight, None if args.bias is None else dbias.sum(0).to(args.bias.dtype)


def _run(name: str, args: ConvArguments, walks: int, **buffers: Tensor) -> None:
    """Call a C function over all tasks: the channel bands of independent walks."""
    batch, tokens, directions, channels = args.output_shape
    width, steps = args.width, args.order.steps
    bands = channel_bands(channels, max(1, walks))
    x = float_rows(args.x)
    weight = args.weight.float().transpose(1, 2).contiguous()
    bias = floats(directions, channels, zero=True) if args.bias is None else args.bias.float().contiguous()
    zeros = floats(channels, zero=True)
    rows, per_channel = batch * tokens * channels, directions * channels
    sizes = {
        "y": rows * directions,
        "dy": rows * directions,
        "dx": rows,
        "dweight": batch * per_channel * width,
        "dbias": batch * per_channel,
    }
    c_args = _CArguments(
        batch=batch,
        tokens=tokens,
        directions=directions,
        channels=channels,
        width=width,
        steps=steps,
        bands=bands,
        silu=args.silu,
        add=args.order.repeats,
        x=address("x", x, rows, rows=True),
        weight=address("weight", weight, per_channel * width),
        bias=address("bias", bias, per_channel),
        zeros=address("zeros", zeros, channels),
        order=address("order", args.order.table, directions * steps, torch.int32),
        sx=Strides(x.stride(0), x.stride(1), 0),
        **{name: address(name, buffer, sizes[name]) for name, buffer in buffers.items()},
    )
    run_tasks(load_library(_SOURCE), name, c_args, tasks=walks * bands)


def _why_not(args: ConvArguments | None) -> str | None:
    if args is not None:
        if (reason := why_not_cpu(*args.tensors())) is not None:
            return reason
        if args.width > _WIDTH_MAX:
            return f"takes at most {_WIDTH_MAX} taps; the weight has {args.width}"
    return why_no_library(_SOURCE)


BACKEND = Backend("native", conv, conv_backward, _why_not)
