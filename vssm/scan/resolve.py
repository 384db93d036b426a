"""Turn what users write for an order (a name, a function or a list of these) into one order function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vssm.scan.combine import stack
from vssm.scan.order import OrderFunction, OrderWithNumber, ScanOrder, order_named

OrderLike = str | OrderFunction | Sequence[str | OrderFunction]


def resolve_order(order: OrderLike) -> OrderFunction:
    """The order function that a name, an order function or a list of them stands for.

    This is what every model's `scan_order` goes through. The orders of a list are stacked: their directions stand
    side by side.

    Raises:
        ValueError: an unknown name, an empty list, or something that is no order function.

    >>> from vssm.scan import resolve_order
    >>> resolve_order(["raster", "columns"])(2, 2).table
    tensor([[0, 1, 2, 3],
            [0, 2, 1, 3]], dtype=torch.int32)
    """
    if isinstance(order, str):
        return order_named(order)
    if isinstance(order, Sequence) and order:
        return _Stacked(tuple(resolve_order(each) for each in order))
    if isinstance(order, OrderWithNumber):
        raise ValueError(f"{order.__name__} takes a number: write {order.__name__}({order.default})")
    if not callable(order):
        raise ValueError(f"{order!r} is no scan order; expected a name, an order function, or a list of these")
    if not isinstance(made := order(2, 2), ScanOrder):
        raise ValueError(f"{order!r} returns a {type(made).__name__}; decorate it with @scan_order")
    return order


@dataclass(frozen=True)
class _Stacked:
    """Several orders with their directions side by side."""

    orders: tuple[OrderFunction, ...]

    def __call__(self, height: int, width: int) -> ScanOrder:
        return stack(*(order(height, width) for order in self.orders))
