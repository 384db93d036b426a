"""A scan order's table as a constant of whatever graph a model is turned into."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vssm.scan import OrderFunction

Tables = dict[tuple[int, int, torch.device], Tensor]


class OrderTable:
    """Look up an order's table for a grid and a device: (height, width, device) -> (directions, steps) int32.

    torch.compile and torch.export see the result as a constant, so the table is made and checked once, outside the
    graph. Grid sizes are taken as plain integers: a compiled model recompiles for a new grid.
    """

    def __init__(self, order: OrderFunction):
        self.order = order
        self._tables: Tables = {}
        self._fill = _make_fill(order, self._tables)

    def __call__(self, height: int, width: int, device: torch.device) -> Tensor:
        place = concrete(height), concrete(width), device
        self._fill(*place)
        return self._tables[place]

    def __reduce__(self):
        return OrderTable, (self.order,)


def concrete(size: int) -> int:
    """The plain integer behind a size that torch.compile may hold as a symbol: it then compiles for this very size."""
    return len(range(size))


def _make_fill(order: OrderFunction, tables: Tables) -> Callable[[int, int, torch.device], bool]:
    """A function that puts a table into `tables`.

    torch.compile runs it while it traces and takes its result for a constant; the table itself then comes from a
    dict like any other tensor. Marked as a constant itself, a second table would clash with the first (torch 2.11).
    """

    @torch.compiler.assume_constant_result
    def fill(height: int, width: int, device: torch.device) -> bool:
        place = height, width, device
        if place not in tables:
            tables[place] = order(height, width).on(device)
        return True

    return fill
