"""A scan order's table as a constant of whatever graph a model is turned into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch

from vssm.ops import ScanTable, kept_for_graphs, wants_standard
from vssm.scan import OrderFunction
from vssm.scan.order import without_modes

Place = tuple[int, int, torch.device]


class OrderTable:
    """Look up an order's table for a grid and a device: (height, width, device) -> ScanTable.

    Tables are shared by all layers of the same order, and the latest are cached. torch.compile and torch.export see
    one as a constant, so it is made and checked once, outside the graph. Grid sizes are taken as plain integers: a
    compiled model recompiles for a new grid.

    Args:
        order: a function (height, width) -> ScanOrder, hashable as all functions are. A layer takes another one as
            another OrderTable: compiled models hold the tables of this one.

    Raises:
        TypeError: an order that cannot be hashed, as an object of a dataclass that is not frozen.

    >>> from vssm.scan import cross
    >>> OrderTable(cross)(2, 3, torch.device("cpu")).table.shape
    torch.Size([4, 6])
    """

    def __init__(self, order: OrderFunction):
        try:
            hash(order)
        except TypeError as error:
            raise TypeError(
                f"tables are kept by their order function, and a {type(order).__name__} has no hash; expected a "
                "function, or an object with a hash, such as a dataclass(frozen=True) of numbers"
            ) from error
        self._order = order
        self._constants: dict[Place, ScanTable] = {}
        self._add_constant = _constant_maker(order, self._constants)

    @property
    def order(self) -> OrderFunction:
        return self._order

    def __call__(self, height: int, width: int, device: torch.device) -> ScanTable:
        if not torch.compiler.is_compiling():
            table = kept_for_graphs(_scan_table(self._order, concrete(height), concrete(width), device))
            return _of_one_grid(table, height, width) if torch.jit.is_tracing() else table
        place = concrete(height), concrete(width), device
        self._add_constant(*place)
        return self._constants[place]

    def __reduce__(self):
        return OrderTable, (self._order,)


def concrete(size: int) -> int:
    """The plain integer behind a size that torch.compile may hold as a symbol: it then compiles for this very size.

    Raises ValueError where torch.export is told that the size is dynamic: the program would be right for one alone.
    """
    if torch.compiler.is_exporting():
        from torch.fx.experimental.symbolic_shapes import has_static_value  # here: it takes a second to import

        if not has_static_value(size):
            raise ValueError(
                "a scan order is a constant for each image size, so a model is exported for one height and width: "
                "declare only the batch dynamic, and export once for each size"
            )
    return len(range(size))


def _of_one_grid(table: ScanTable, height: int, width: int) -> ScanTable:
    """The table in a trace, which then refuses other grids: this table would be wrong for those of as many tokens.

    In files for other programs it stays a constant; `vssm.inference.export` has them look at their images instead.
    """
    if wants_standard():
        return table
    nothing = torch.zeros(height, width, 0, dtype=torch.int32, device=table.table.device)
    nothing = nothing.unflatten(0, (concrete(height),)).unflatten(1, (concrete(width),))
    return replace(table, table=table.table + nothing.sum(dtype=torch.int32))


# Detectors meet a hundred sizes of images, each with a grid for every stage: at 800 x 1333 pixels 1.4 MB of tables.
@lru_cache(maxsize=512)
def _scan_table(order: OrderFunction, height: int, width: int, device: torch.device) -> ScanTable:
    def make() -> ScanTable:
        made = order(height, width)
        return ScanTable.of(made.table, made.tokens, device)

    return without_modes(make)


def _constant_maker(
    order: OrderFunction, constants: dict[Place, ScanTable]
) -> Callable[[int, int, torch.device], bool]:
    """A function that puts a table into `constants`.

    torch.compile runs it while it traces and takes its result for a constant; the table itself then comes from a
    dict like any other tensor. Marked as a constant itself, a second table would clash with the first (torch 2.11).
    """

    @torch.compiler.assume_constant_result
    def add(height: int, width: int, device: torch.device) -> bool:
        place = height, width, device
        if place not in constants:
            constants[place] = _scan_table(order, *place)
        return True

    return add
