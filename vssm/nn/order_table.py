"""A scan order's table as a constant of whatever graph a model is turned into."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vssm.scan import OrderFunction


class OrderTable:
    """Look up an order's table for a grid and a device: (height, width, device) -> (directions, steps) int32.

    torch.compile and torch.export see the result as a constant, so the table is made and checked once, outside the
    graph. Grid sizes are taken as plain integers: a compiled model recompiles for a new grid.
    """

    def __init__(self, order: OrderFunction):
        self.order = order
        self._lookup = _constant_lookup(order)

    def __call__(self, height: int, width: int, device: torch.device) -> Tensor:
        # len(range(n)) turns torch.compile's symbolic sizes into integers, which the constant lookup needs.
        return self._lookup(len(range(height)), len(range(width)), device)

    def __reduce__(self):
        return OrderTable, (self.order,)


def _constant_lookup(order: OrderFunction) -> Callable[[int, int, torch.device], Tensor]:
    @torch.compiler.assume_constant_result
    def lookup(height: int, width: int, device: torch.device) -> Tensor:
        return order(height, width).on(device)

    return lookup
