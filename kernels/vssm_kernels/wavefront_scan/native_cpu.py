"""The wavefront scan on a CPU in C (native.c): vectors of channels, row by row, threads over images and channels."""

from __future__ import annotations

import ctypes
from pathlib import Path

from torch import Tensor

from vssm_kernels.buffers import address, floats, packed
from vssm_kernels.compiler import Strides, channel_bands, float_rows, load_library, run_tasks, why_no_library
from vssm_kernels.dispatch import Backend, why_not_cpu
from vssm_kernels.saturation import saturate
from vssm_kernels.wavefront_scan.arguments import WAYS, WavefrontArguments

_SOURCE = Path(__file__).with_name("native.c")


class _CArguments(ctypes.Structure):
    """wavefront_args of native.c."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("batch", "height", "width", "channels", "state", "bands", "reverse")),
        *((n, ctypes.c_void_p) for n in ("u", "delta", "A", "B", "C", "D", "bias")),
        *((n, Strides) for n in ("su", "sdelta", "sB", "sC", "sdy")),
        *((n, ctypes.c_void_p) for n in ("y", "dy", "du", "ddelta", "dA", "dD", "dbias", "dB", "dC")),
    ]


def scan(args: WavefrontArguments, save: bool = False) -> tuple[Tensor, None]:
    y = floats(*args.output_shape)
    _run("vssm_wavefront_forward", args, y=y)
    return saturate(y, args.u.dtype), None


def scan_backward(args: WavefrontArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    batch, _, _, channels = args.u.shape
    bands = _bands(args)  # each has its own dB and dC, to be added up
    du, ddelta = floats(*args.u.shape), floats(*args.delta.shape)
    dA, dD, dbias = floats(batch, *args.A.shape), floats(batch, channels), floats(batch, WAYS, channels)
    dB, dC = floats(bands, *args.B.shape), floats(bands, *args.C.shape)
    out = {"du": du, "ddelta": ddelta, "dA": dA, "dB": dB, "dC": dC, "dD": dD, "dbias": dbias}
    _run("vssm_wavefront_backward", args, dy=_rows(gradient), **out)
    return args.cast(du, ddelta, *(part.sum(0) for part in (dA, dB, dC, dD, dbias)))


def _bands(args: WavefrontArguments) -> int:
    return channel_bands(args.u.shape[3], max(1, args.u.shape[0]))


def _rows(tensor: Tensor) -> Tensor:
    """In float32, its last dimension contiguous and its rows one after another: C takes one stride for all tokens."""
    tensor = float_rows(tensor)
    return tensor if tensor.stride(1) == tensor.shape[2] * tensor.stride(2) else packed(tensor)


def _run(name: str, args: WavefrontArguments, **buffers: Tensor) -> None:
    """Call a C function over all tasks: the channel bands of the images."""
    batch, height, width, channels = args.u.shape
    state, bands = args.state, _bands(args)
    u, delta, B, C = (_rows(tensor) for tensor in (args.u, args.delta, args.B, args.C))
    A, D, bias = (
        None if tensor is None else tensor.float().contiguous() for tensor in (args.A, args.D, args.delta_bias)
    )
    tokens = batch * height * width
    size, states = tokens * channels, tokens * state
    sizes = {
        "y": size,
        "du": size,
        "ddelta": WAYS * size,
        "dA": batch * WAYS * channels * state,
        "dD": batch * channels,
        "dbias": batch * WAYS * channels,
        "dB": bands * WAYS * states,
        "dC": bands * states,
    }
    dy = buffers.pop("dy", None)
    c_args = _CArguments(
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        state=state,
        bands=bands,
        reverse=args.reverse,
        u=address("u", u, size, rows=True),
        delta=address("delta", delta, WAYS * size, rows=True),
        A=address("A", A, WAYS * channels * state),
        B=address("B", B, WAYS * states, rows=True),
        C=address("C", C, states, rows=True),
        D=address("D", D, channels),
        bias=address("delta_bias", bias, WAYS * channels),
        su=_strides(u),
        sdelta=_strides(delta),
        sB=_strides(B),
        sC=_strides(C),
        dy=address("dy", dy, size, rows=True),
        sdy=Strides() if dy is None else _strides(dy),
        **{name: address(name, buffer, sizes[name]) for name, buffer in buffers.items()},
    )
    run_tasks(load_library(_SOURCE), name, c_args, tasks=batch * bands)


def _strides(tensor: Tensor) -> Strides:
    """From image to image, from column to column, and from way to way where there are ways."""
    return Strides(tensor.stride(0), tensor.stride(2), tensor.stride(3) if tensor.dim() == 5 else 0)


def _why_not(args: WavefrontArguments | None) -> str | None:
    if args is not None and (reason := why_not_cpu(*args.tensors())) is not None:
        return reason
    return why_no_library(_SOURCE)


BACKEND = Backend("native", scan, scan_backward, _why_not)
