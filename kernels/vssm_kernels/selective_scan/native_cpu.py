"""The selective scan on a CPU in C (native.c): states in vector registers, serial over steps, threads over tasks."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from vssm_kernels.buffers import address, floats
from vssm_kernels.compiler import Strides, channel_bands, float_rows, load_library, run_tasks, why_no_library
from vssm_kernels.dispatch import Backend, why_not_cpu
from vssm_kernels.orders import output_rows
from vssm_kernels.saturation import saturate
from vssm_kernels.selective_scan.arguments import ScanArguments

_SOURCE = Path(__file__).with_name("native.c")
_STATES_MAX = 3072  # states of a task: with their rates, 8 bytes each, they stay in a core's L1 cache


class _CArguments(ctypes.Structure):
    """scan_args of native.c."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("batch", "tokens", "directions", "channels")),
        *((n, ctypes.c_int64) for n in ("state", "steps", "segment", "bands", "add", "shared")),
        *((n, ctypes.c_void_p) for n in ("u", "delta", "A", "B", "C", "D", "bias", "order")),
        *((n, Strides) for n in ("su", "sdelta", "sB", "sC", "sdy")),
        *((n, ctypes.c_void_p) for n in ("y", "dy", "du", "ddelta", "dA", "dD", "dbias", "dB", "dC")),
    ]


def scan(args: ScanArguments, save: bool = False) -> tuple[Tensor, None]:
    y = output_rows(args.order, args.output_shape, torch.float32, "cpu")
    walks = max(1, args.batch * args.directions)
    bands = channel_bands(args.channels, walks, wanted=args.channels * args.state // _STATES_MAX)
    _run("vssm_scan_forward", args, bands, tasks=args.batch * args.directions * bands, y=y)
    return saturate(y, args.output_dtype), None


def scan_backward(args: ScanArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    batch, directions, channels = args.batch, args.directions, args.channels
    bands = channel_bands(channels, max(1, batch))  # each has its own dB and dC, to be added up
    rows = args.order, args.output_shape, torch.float32, "cpu"
    ddelta = output_rows(*rows)
    du = floats(*args.u.shape, zero=True) if args.shared_input else output_rows(*rows)
    dA = floats(batch, directions, channels, args.state)
    dD, dbias = floats(2, batch, directions, channels)
    dB, dC = floats(2, bands, *args.B.shape, zero=True)
    out = {"du": du, "ddelta": ddelta, "dA": dA, "dB": dB, "dC": dC, "dD": dD, "dbias": dbias}
    _run("vssm_scan_backward", args, bands, tasks=batch * bands, dy=float_rows(gradient), **out)
    return args.cast(du, ddelta, *(part.sum(0) for part in (dA, dB, dC, dD, dbias)))


def _run(name: str, args: ScanArguments, bands: int, tasks: int, **buffers: Tensor) -> None:
    """Call a C function over all tasks: the channel bands of independent walks."""
    batch, tokens, directions, channels = args.row_shape
    state, steps = args.state, args.steps
    u, delta, B, C = (float_rows(tensor) for tensor in (args.u, args.delta, args.B, args.C))
    A, D, bias = (
        None if tensor is None else tensor.float().contiguous() for tensor in (args.A, args.D, args.delta_bias)
    )
    tokens_all, per_channel = batch * tokens * directions, batch * directions * channels
    size, states = tokens_all * channels, tokens_all * state
    u_size = batch * tokens * channels if args.shared_input else size
    sizes = {
        "y": size,
        "du": u_size,
        "ddelta": size,
        "dA": per_channel * state,
        "dD": per_channel,
        "dbias": per_channel,
        "dB": bands * states,
        "dC": bands * states,
    }
    dy = buffers.pop("dy", None)
    table = None if args.order is None else args.order.table
    c_args = _CArguments(
        batch=batch,
        tokens=tokens,
        directions=directions,
        channels=channels,
        state=state,
        steps=steps,
        segment=args.segment,
        bands=bands,
        add=args.repeats,
        shared=args.shared_input,
        u=address("u", u, u_size, rows=True),
        delta=address("delta", delta, size, rows=True),
        A=address("A", A, directions * channels * state),
        B=address("B", B, states, rows=True),
        C=address("C", C, states, rows=True),
        D=address("D", D, directions * channels),
        bias=address("delta_bias", bias, directions * channels),
        order=address("order", table, directions * steps, torch.int32),
        su=Strides(u.stride(0), u.stride(1), 0) if args.shared_input else _strides(u),
        sdelta=_strides(delta),
        sB=_strides(B),
        sC=_strides(C),
        dy=address("dy", dy, size, rows=True),
        sdy=Strides() if dy is None else _strides(dy),
        **{name: address(name, buffer, sizes[name]) for name, buffer in buffers.items()},
    )
    run_tasks(load_library(_SOURCE), name, c_args, tasks)


def _strides(tensor: Tensor) -> Strides:
    return Strides(*tensor.stride()[:3])


def _why_not(args: ScanArguments | None) -> str | None:
    if args is not None:
        if (reason := why_not_cpu(*args.tensors())) is not None:
            return reason
        if args.C is None:
            return "does not return states (C=None)"
    return why_no_library(_SOURCE)


BACKEND = Backend("native", scan, scan_backward, _why_not)
