"""The scan of a tree on a CPU in C (native.c)."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from vssm_kernels.buffers import address, floats
from vssm_kernels.compiler import Strides, channel_bands, float_rows, load_library, run_tasks, why_no_library
from vssm_kernels.dispatch import Backend, why_not_cpu
from vssm_kernels.grid_tree.arguments import ROWS
from vssm_kernels.tree_scan.arguments import TreeScanArguments

_SOURCE = Path(__file__).with_name("native.c")


class _CArguments(ctypes.Structure):
    """tree_args of native.c."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("batch", "tokens", "channels", "bands")),
        *((n, ctypes.c_void_p) for n in ("u", "delta", "A", "B", "bias", "tree")),
        *((n, Strides) for n in ("su", "sdelta")),
        *((n, ctypes.c_void_p) for n in ("h", "dh", "du", "ddelta", "dA", "dbias", "dB")),
    ]


def scan(args: TreeScanArguments, save: bool = False) -> tuple[Tensor, None]:
    h = floats(*args.u.shape)
    _run(args, h=h)
    return h, None


def scan_backward(args: TreeScanArguments, gradient: Tensor) -> tuple[Tensor, ...]:
    batch, tokens, channels = shape = args.u.shape
    dh = floats(*shape).copy_(gradient)
    h, du, ddelta = (floats(*shape) for _ in range(3))
    dA, dbias = floats(2, batch, channels, zero=True)
    dB = floats(_bands(args), batch, tokens)
    _run(args, h=h, dh=dh, du=du, ddelta=ddelta, dA=dA, dbias=dbias, dB=dB)
    found = du, ddelta, dA.sum(0), dB.sum(0), dbias.sum(0)
    return tuple(each.to(tensor.dtype) for each, tensor in zip(found, args.tensors(), strict=True))


def _bands(args: TreeScanArguments) -> int:
    batch, _, channels = args.u.shape
    return channel_bands(channels, max(1, batch))


def _run(args: TreeScanArguments, **buffers: Tensor) -> None:
    """Call the C function over all tasks: the channel bands of all images."""
    batch, tokens, channels = args.u.shape
    size, bands = args.u.numel(), _bands(args)
    u, delta = float_rows(args.u), float_rows(args.delta)
    A, bias = args.A.float().contiguous(), args.delta_bias.float().contiguous()
    B, tree = args.B.float().contiguous(), args.tree.contiguous()
    _check(tree)
    sizes = {"dA": batch * channels, "dbias": batch * channels, "dB": bands * batch * tokens}
    c_args = _CArguments(
        batch=batch,
        tokens=tokens,
        channels=channels,
        bands=bands,
        u=address("u", u, size, rows=True),
        delta=address("delta", delta, size, rows=True),
        A=address("A", A, channels),
        B=address("B", B, batch * tokens),
        bias=address("delta_bias", bias, channels),
        tree=address("tree", tree, batch * ROWS * tokens, torch.int32),
        su=Strides(u.stride(0), u.stride(1)),
        sdelta=Strides(delta.stride(0), delta.stride(1)),
        **{name: address(name, buffer, sizes.get(name, size)) for name, buffer in buffers.items()},
    )
    run_tasks(load_library(_SOURCE), "vssm_tree_scan", c_args, tasks=batch * bands)


def _check(tree: Tensor) -> None:
    """C would write wherever a table says."""
    tokens = tree.shape[2]
    for name, entries in (("vertices", tree[:, 0]), ("parents", tree[:, 1, 1:])):
        if entries.numel() and not 0 <= entries.min() <= entries.max() < tokens:
            raise ValueError(
                f"tree has {name} from {entries.min()} to {entries.max()}; expected 0 to {tokens - 1}, as grid_tree "
                f"makes it for a map of {tokens} positions"
            )


def _why_not(args: TreeScanArguments | None) -> str | None:
    if args is not None and (reason := why_not_cpu(*args.tensors())) is not None:
        return reason
    return why_no_library(_SOURCE)


BACKEND = Backend("native", scan, scan_backward, _why_not)
