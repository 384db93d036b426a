"""The selective scan on a CPU in C (native.c): states in vector registers, serial over steps, threads over tasks."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from vssm_kernels.compiler import Strides, channel_groups, float_rows, load_library, run_tasks, why_no_library
from vssm_kernels.dispatch import Backend, why_not_cpu
from vssm_kernels.orders import order_facts, output_rows
from vssm_kernels.saturation import saturate
from vssm_kernels.selective_scan.arguments import ScanArguments

_SOURCE = Path(__file__).with_name("native.c")
_STATES_KEPT = 3072  # of a token's, by one thread: they stay in its L1 cache with their rates, 8 bytes each


class _CArguments(ctypes.Structure):
    """scan_args of native.c."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("batch", "tokens", "directions", "channels")),
        *((n, ctypes.c_int64) for n in ("state", "steps", "segment", "groups", "add", "shared")),
        *((n, ctypes.c_void_p) for n in ("u", "delta", "A", "B", "C", "D", "bias", "order")),
        *((n, Strides) for n in ("su", "sdelta", "sB", "sC", "sdy")),
        *((n, ctypes.c_void_p) for n in ("y", "dy", "du", "ddelta", "dA", "dD", "dbias", "dB", "dC")),
    ]


def scan(args: ScanArguments) -> Tensor:
    y = output_rows(args.order, args.tokens, args.output_shape)
    walks = args.batch * args.directions
    groups = channel_groups(args.channels, walks, wanted=args.channels * args.state // _STATES_KEPT)
    _run("vssm_scan_forward", args, groups, tasks=walks * groups, y=y)
    return saturate(y, args.u.dtype)


def scan_backward(args: ScanArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    batch, _, directions, channels = args.delta.shape
    groups = channel_groups(channels, batch)  # each has its own dB and dC, to be added up
    rows = args.order, args.tokens, args.output_shape
    out = {"ddelta": output_rows(*rows)}
    out["du"] = torch.zeros(args.u.shape) if args.shared_input else output_rows(*rows)
    out["dA"] = torch.empty(batch, directions, channels, args.state)
    out |= {name: torch.empty(batch, directions, channels) for name in ("dD", "dbias")}
    out |= {name: torch.zeros(groups, *args.B.shape) for name in ("dB", "dC")}
    _run("vssm_scan_backward", args, groups, tasks=batch * groups, dy=float_rows(gradient), **out)
    gradients = (
        out["du"],
        out["ddelta"],
        out["dA"].sum(0),
        out["dB"].sum(0),
        out["dC"].sum(0),
        out["dD"].sum(0),
        out["dbias"].sum(0),
    )
    return tuple(
        None if tensor is None else value.to(tensor.dtype)
        for value, tensor in zip(gradients, args.tensors(), strict=True)
    )


def _run(name: str, args: ScanArguments, groups: int, tasks: int, **buffers: Tensor) -> None:
    small = {"A": args.A, "D": args.D, "bias": args.delta_bias}
    small = {name: None if tensor is None else tensor.float().contiguous() for name, tensor in small.items()}
    order = None if args.order is None else args.order.contiguous()
    u, delta, B, C = (float_rows(tensor) for tensor in (args.u, args.delta, args.B, args.C))
    u_strides = Strides(u.stride(0), u.stride(1), 0) if args.shared_input else _strides(u)
    pointers = {**dict(zip("uBC", (u, B, C), strict=True)), "delta": delta, **small, "order": order, **buffers}
    facts = order_facts(args.order, args.tokens)  # refuses entries out of range, which C would not
    c_args = _CArguments(
        *(args.batch, args.tokens, args.directions, args.channels, args.state, args.steps, args.segment, groups),
        add=facts.repeats,
        shared=args.shared_input,
        su=u_strides,
        sdelta=_strides(delta),
        sB=_strides(B),
        sC=_strides(C),
        sdy=_strides(buffers["dy"]) if "dy" in buffers else Strides(),
        **{name: None if tensor is None else tensor.data_ptr() for name, tensor in pointers.items()},
    )
    run_tasks(load_library(_SOURCE), name, c_args, tasks)


def _strides(tensor: Tensor) -> Strides:
    return Strides(*tensor.stride()[:3])


def _why_not(args: ScanArguments | None) -> str | None:
    if args is not None:
        if (elsewhere := why_not_cpu(args.u)) is not None:
            return elsewhere
        if any(tensor is not None and tensor.dtype == torch.float64 for tensor in args.tensors()):
            return "computes in float32; float64 inputs ask for more"
        if args.C is None:
            return "does not return states (C=None)"
    return why_no_library(_SOURCE)


BACKEND = Backend("native", scan, scan_backward, _why_not)
