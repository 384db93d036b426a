"""The tree of a map on a CPU in C (native.c)."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from vssm_kernels.buffers import address
from vssm_kernels.compiler import load_library, run_tasks, why_no_library
from vssm_kernels.dispatch import Backend, why_not_cpu
from vssm_kernels.grid_tree.arguments import MapArguments, no_gradient

_SOURCE = Path(__file__).with_name("native.c")


class _CArguments(ctypes.Structure):
    """map_args of native.c."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("height", "width", "channels")),
        *((n, ctypes.c_void_p) for n in ("x", "table")),
    ]


def tree(args: MapArguments, save: bool = False) -> tuple[Tensor, None]:
    """(batch, 4, tokens) int32."""
    x = args.x.float().contiguous()
    batch, height, width, channels = x.shape
    table = torch.empty(args.output_shape, dtype=torch.int32, device="cpu")
    c_args = _CArguments(
        height=height,
        width=width,
        channels=channels,
        x=address("x", x, x.numel()),
        table=address("table", table, table.numel(), torch.int32),
    )
    run_tasks(load_library(_SOURCE), "vssm_grid_tree", c_args, tasks=batch)
    return table, None


def _why_not(args: MapArguments | None) -> str | None:
    if args is not None and (reason := why_not_cpu(args.x)) is not None:
        return reason
    return why_no_library(_SOURCE)


BACKEND = Backend("native", tree, no_gradient, _why_not)
