"""ScanOrder, and the registry of order functions by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial, update_wrapper
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

OrderFunction = Callable[[int, int], "ScanOrder"]

# The largest grid of a table, padding included: a picture of 16,384 x 16,384 pixels in patches of 4. Tables of more
# would take gigabytes.
MAX_CELLS = 2**24

_registry: dict[str, OrderFunction | OrderWithNumber] = {}


@dataclass(frozen=True, eq=False)
class ScanOrder:
    """A table of the token that each direction visits at each step, over `tokens` tokens in raster order.

    Args:
        table: (directions, steps) integers, copied; -1 is an empty step, at which nothing is read or written.
        tokens: how many tokens there are to visit (height * width, and any inserted ones).

    Raises:
        TypeError: a table that is no tensor, or a number of tokens that is no integer.
        ValueError: a table that is not two-dimensional, does not hold integers, or leaves the tokens.

    >>> order = ScanOrder(torch.tensor([[2, 0, 1]]), tokens=3)
    >>> order.visits
    tensor([[1, 1, 1]], dtype=torch.int32)
    """

    table: Tensor
    tokens: int

    def __post_init__(self) -> None:
        if not isinstance(self.table, Tensor):
            raise TypeError(
                f"a scan order's table is a tensor; got a {type(self.table).__name__}: make it with torch.as_tensor"
            )
        if not isinstance(self.tokens, Integral) or isinstance(self.tokens, bool):
            raise TypeError(f"a scan order walks a whole number of tokens; got {self.tokens!r}")
        if self.table.dim() != 2 or self.table.numel() == 0:
            raise ValueError(f"a scan order's table is (directions, steps); got shape {tuple(self.table.shape)}")
        if self.table.is_floating_point() or self.table.dtype == torch.bool:
            raise ValueError(f"a scan order's table holds integers; got {self.table.dtype}")
        low, high = int(self.table.min()), int(self.table.max())
        if low < -1 or high >= self.tokens:
            raise ValueError(
                f"the table holds entries from {low} to {high}; expected tokens 0 to {self.tokens - 1}, or -1 for an "
                f"empty step"
            )
        table = self.table.to(torch.int32, copy=True, memory_format=torch.contiguous_format)
        object.__setattr__(self, "table", table)

    @property
    def directions(self) -> int:
        return self.table.shape[0]

    @property
    def steps(self) -> int:
        return self.table.shape[1]

    @cached_property
    def visits(self) -> Tensor:
        """(directions, tokens): how often each direction visits each token."""
        # Visits of empty steps are counted in front of the first token.
        counts = torch.zeros(self.directions, self.tokens + 1, dtype=torch.int32, device=self.table.device)
        counts.scatter_add_(1, self.table.long() + 1, torch.ones_like(self.table))
        return counts[:, 1:]

    def gather(self, values: Tensor) -> Tensor:
        """Token rows as each direction meets them, zeros at empty steps.

        (batch, tokens, channels) or (batch, tokens, directions, channels) -> (batch, directions, steps, channels)

        Raises:
            ValueError: values of another number of tokens or directions than the order's.
        """
        if values.dim() not in (3, 4) or values.shape[1:-1] not in ((self.tokens,), (self.tokens, self.directions)):
            raise ValueError(
                f"values have shape {tuple(values.shape)}; expected (batch, tokens, channels) or (batch, tokens, "
                f"directions, channels), as the order has {self.tokens} tokens and {self.directions} directions"
            )
        table = self.table.to(values.device).long()
        if values.dim() == 3:
            values = values.unsqueeze(2).expand(-1, -1, self.directions, -1)
        direction = torch.arange(self.directions, device=values.device)[:, None]
        rows = values[:, table.clamp(min=0), direction]
        return rows.masked_fill((table < 0)[..., None], 0)


def without_modes(function: Callable[[], Any]) -> Any:
    """Call a function in a thread of its own, where no mode of the caller's is on.

    A table outlives inference mode and a default device, and must be no part of what torch.export traces.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(function).result()


def scan_order(function: Callable[[int, int], Tensor | ScanOrder]) -> OrderFunction:
    """Decorator: register an order under its function's name and check the sizes that it is asked for.

    The function takes (height, width) in tokens and returns a ScanOrder, or the table alone.
    """

    def order(height: int, width: int) -> ScanOrder:
        return _make(function.__name__, function, height, width)

    _register(function.__name__, update_wrapper(order, function))
    return order


def scan_order_with(
    default: int, least: int = 0, most: int = 10**9
) -> Callable[[Callable[..., Tensor | ScanOrder]], OrderWithNumber]:
    """Decorator: register an order that takes a whole number, such as a window's size.

    The function takes (number, height, width) and returns a ScanOrder, or the table alone. The decorated object takes
    the number and returns the order function: windows(7)(14, 14). In a name the number stands in brackets,
    "windows(7)"; "windows" alone has the default.

    Args:
        default: the number where a name gives none.
        least, most: the smallest and the largest number that make sense.
    """

    def decorate(function: Callable[..., Tensor | ScanOrder]) -> OrderWithNumber:
        order = OrderWithNumber(function, default, least, most)
        _register(function.__name__, order)
        return order

    return decorate


class OrderWithNumber:
    """A family of orders with a whole-number parameter; call it with the number to get the order function."""

    def __init__(self, function: Callable[..., Tensor | ScanOrder], default: int, least: int, most: int):
        update_wrapper(self, function)
        self.function, self.default, self.least, self.most = function, default, least, most

    def __call__(self, number: int) -> OrderFunction:
        if not isinstance(number, int) or isinstance(number, bool) or not self.least <= number <= self.most:
            raise ValueError(f"{self.__name__}({number!r}): expected a whole number from {self.least} to {self.most}")
        return _Numbered(self, number)

    def __reduce__(self) -> str:
        return self.__qualname__  # pickled by name, as functions are


@dataclass(frozen=True)
class _Numbered:
    """The order function for one number; two of the same number are equal."""

    order: OrderWithNumber
    number: int

    def __call__(self, height: int, width: int) -> ScanOrder:
        return _make(self.__name__, partial(self.order.function, self.number), height, width)

    @property
    def __name__(self) -> str:
        return f"{self.order.__name__}({self.number})"


def _make(name: str, make: Callable[[int, int], Tensor | ScanOrder], height: int, width: int) -> ScanOrder:
    if height < 1 or width < 1:
        raise ValueError(f"scan order {name!r} needs a grid of at least 1 x 1 tokens; got {height} x {width}")
    check_cells(name, height, width)

    def order() -> ScanOrder:
        made = make(height, width)
        return made if isinstance(made, ScanOrder) else ScanOrder(made, height * width)

    return without_modes(order)


def check_cells(name: str, height: int, width: int) -> None:
    """Refuse a grid, padding included, whose table would take gigabytes.

    Raises:
        ValueError: more than MAX_CELLS.
    """
    if height * width > MAX_CELLS:
        raise ValueError(
            f"scan order {name!r} on a grid of {height} x {width}, padding included, is too large: expected at most "
            f"{MAX_CELLS:,} cells; choose a smaller image, larger patches or a smaller window"
        )


def _register(name: str, order: OrderFunction | OrderWithNumber) -> None:
    if name in _registry:
        raise ValueError(f"a scan order named {name!r} exists already; give the new one another name")
    _registry[name] = order


def order_names() -> list[str]:
    """The names of all registered orders."""
    return sorted(_registry)


def order_named(name: str) -> OrderFunction:
    """The order function of a name such as "hilbert", "windows" or "windows(4)".

    Raises:
        ValueError: an unknown name (the known ones are listed), or a number that the order does not take.

    >>> from vssm.scan import order_named
    >>> order_named("windows(2)")(2, 4).table[0]
    tensor([0, 1, 4, 5, 2, 3, 6, 7], dtype=torch.int32)
    """
    stem, number = _name_and_number(name)
    if stem not in _registry:
        raise ValueError(f"no scan order is named {name!r}; known: {', '.join(order_names())}")
    order = _registry[stem]
    if isinstance(order, OrderWithNumber):
        return order(order.default if number is None else number)
    if number is not None:
        raise ValueError(f"the scan order {stem!r} takes no number, but {name!r} gives one; write {stem!r}")
    return order


def _name_and_number(name: str) -> tuple[str, int | None]:
    found = re.fullmatch(r"(\w+)(?:\((.*)\))?", name)
    if found is None:
        raise ValueError(
            f"{name!r} does not name a scan order; expected a name, or a name with a whole number such as 'windows(7)'"
        )
    stem, number = found.groups()
    if number is not None and not re.fullmatch(r"[0-9]{1,9}", number):
        raise ValueError(f"{name!r}: {number!r} is not a whole number; expected a name such as 'windows(7)'")
    return stem, None if number is None else int(number)
