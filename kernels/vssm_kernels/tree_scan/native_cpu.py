"""The scan of a tree on a CPU: the sweeps in C (native.c), what stands before and after them in torch."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from vssm_kernels.buffers import address
from vssm_kernels.compiler import channel_bands, load_library, run_tasks, why_no_library
from vssm_kernels.dispatch import Backend, why_not_cpu
from vssm_kernels.tree_scan.arguments import TreeScanArguments
from vssm_kernels.tree_scan.reference import added_and_weight, gradients

_SOURCE = Path(__file__).with_name("native.c")


class _CArguments(ctypes.Structure):
    """tree_args of native.c."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("tokens", "channels", "bands")),
        *((n, ctypes.c_void_p) for n in ("tree", "weight", "h", "dh", "dexponent")),
    ]


def scan(args: TreeScanArguments, save: bool = False) -> tuple[Tensor, None]:
    added, weight = added_and_weight(args)
    h = added.contiguous()
    _sweep(args.tree, weight, h)
    return h, None


def scan_backward(args: TreeScanArguments, gradient: Tensor) -> tuple[Tensor, ...]:
    added, weight = added_and_weight(args)
    dh = gradient.clone(memory_format=torch.contiguous_format)
    dexponent = torch.zeros_like(dh)
    _sweep(args.tree, weight, added.contiguous(), dh=dh, dexponent=dexponent)
    return gradients(args, dh, dexponent)


def _sweep(tree: Tensor, weight: Tensor, h: Tensor, **more: Tensor) -> None:
    """Both sweeps in place, over all channels of all images."""
    batch, tokens, channels = h.shape
    bands = channel_bands(channels, max(1, batch))
    buffers = {"weight": weight.contiguous(), "h": h, **more}
    tree = tree.contiguous()
    c_args = _CArguments(
        tokens=tokens,
        channels=channels,
        bands=bands,
        tree=address("tree", tree, tree.numel(), torch.int32),
        **{name: address(name, buffer, h.numel()) for name, buffer in buffers.items()},
    )
    run_tasks(load_library(_SOURCE), "vssm_tree_sweeps", c_args, tasks=batch * bands)


def _why_not(args: TreeScanArguments | None) -> str | None:
    if args is not None and (reason := why_not_cpu(*args.tensors())) is not None:
        return reason
    return why_no_library(_SOURCE)


BACKEND = Backend("native", scan, scan_backward, _why_not)
