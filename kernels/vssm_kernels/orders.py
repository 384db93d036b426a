"""A scan order as kernels take it: its table on a device, and the facts that decide how they write."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from vssm_kernels.dispatch import is_plain, is_watched

_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False, slots=True)
class ScanTable:
    """A checked table on a device. Make one with `ScanTable.of`, which copies: nobody else can change the memory.

    Args:
        table: (directions, steps) int32, contiguous; -1 is an empty step.
        tokens: how many tokens there are, None where the table is not checked yet because a compiler traces it.
        repeats: whether a direction visits a token twice, so that outputs are added up.
        covers: whether every direction visits every token, so that every output is written.

    >>> import torch
    >>> table = ScanTable.of(torch.tensor([[2, 0, 1], [0, 0, -1]]), tokens=3)
    >>> table.repeats, table.covers
    (True, False)
    """

    table: Tensor
    tokens: int | None
    repeats: bool | None
    covers: bool | None

    @classmethod
    def of(cls, table: Tensor, tokens: int, device: torch.device | str | None = None) -> ScanTable:
        """Copy and check a table of integers; its facts are counted on the CPU.

        Args:
            table: (directions, steps) integers.
            tokens: how many tokens there are to visit.
            device: of the copy; None is the table's own.

        Raises:
            ValueError: an entry outside -1 ... tokens - 1, or a table without directions, steps or tokens.
            TypeError: anything but a tensor of integers.
        """
        found = table.dtype if isinstance(table, Tensor) else f"a {type(table).__name__}"
        if found not in _INTEGERS:
            raise TypeError(f"order is {found}; expected a tensor of integers")
        if table.dim() != 2 or table.numel() == 0 or tokens < 1:
            raise ValueError(
                f"order has shape {tuple(table.shape)} for {tokens} tokens; expected (directions, steps), and at least "
                f"one token"
            )
        table = _unwrapped(table)
        # A table outlives the modes and transforms that it is made in.
        with torch.inference_mode(False), torch.no_grad(), torch._C._DisableFuncTorch():
            wide = table.to("cpu", torch.int64)
            low, high = (int(bound) for bound in wide.aminmax())  # before int32 cuts them off
            if low < -1 or high >= tokens:
                raise ValueError(
                    f"order holds entries from {low} to {high}; expected token indices 0 to {tokens - 1}, "
                    f"or -1 for an empty step"
                )
            copy = torch.empty(table.shape, dtype=torch.int32, device="cpu").copy_(wide)
            # Visits of empty steps are counted in front of the first token.
            visits = torch.zeros(table.shape[0], tokens + 1, dtype=torch.int32, device="cpu")
            visits.scatter_add_(1, copy.long() + 1, torch.ones_like(copy))
            fewest, most = (int(bound) for bound in visits[:, 1:].aminmax())
            return cls(copy.to(table.device if device is None else device), tokens, most > 1, fewest > 0)

    @property
    def directions(self) -> int:
        return self.table.shape[0]

    @property
    def steps(self) -> int:
        return self.table.shape[1]

    @property
    def writes_each_row_once(self) -> bool:
        return self.covers and not self.repeats


def as_scan_table(order: ScanTable | Tensor, directions: int, tokens: int, device: torch.device) -> ScanTable:
    """The order that was given to an op, checked against its other arguments; a plain tensor becomes a ScanTable.

    Raises:
        ValueError: a table of another shape or device, or an entry outside -1 ... tokens - 1.
        TypeError: a table that is not int32.
    """
    if isinstance(order, ScanTable):
        if order.tokens is not None and order.tokens != tokens:
            raise ValueError(f"order walks {order.tokens} tokens, but the input has {tokens}; make one for this size")
        table = order.table
    else:
        table, order = order, None
    if not isinstance(table, Tensor):
        raise TypeError(
            f"order is a {type(table).__name__}; expected a ScanTable, or a tensor of int32 (the table of a ScanOrder)"
        )
    if table.dim() != 2 or table.shape[0] != directions or table.shape[1] < 1:
        raise ValueError(f"order has shape {tuple(table.shape)}; expected (directions, steps) = ({directions}, steps)")
    if table.dtype != torch.int32:
        raise TypeError(f"order is {table.dtype}; expected torch.int32 (use order.to(torch.int32))")
    if table.device != device:
        raise ValueError(f"order is on {table.device} but the input on {device}; move both to one device")
    if order is not None:
        return order
    if is_watched() or not is_plain(table):
        return ScanTable(table, None, None, None)  # its entries are known at run time only
    return checked(table, tokens)


# Keyed by address and version; the tensor is held beside its ScanTable so that its address is not reused.
_checked: OrderedDict[tuple, tuple[Tensor, ScanTable]] = OrderedDict()
_CHECKED_MAX = 256


def checked(table: Tensor, tokens: int) -> ScanTable:
    """ScanTable.of a plain tensor, once per tensor, version and number of tokens.

    A change in place makes another version and is checked again; one through NumPy has no effect after the first use.

    Raises:
        RuntimeError: a CUDA graph is being captured before the table's first use, which waits for the device.
    """
    table = _unwrapped(table)
    if table.is_inference():  # such tensors have no version: a change would go unnoticed
        return ScanTable.of(table, tokens)
    key = (table.data_ptr(), table.device, table.shape, table.stride(), table._version, tokens)
    if (found := _checked.get(key)) is not None:
        return kept_for_graphs(found[1])
    if table.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("run the model once before capturing a CUDA graph: its scan order is not yet checked")
    made = ScanTable.of(table, tokens)
    _checked[key] = (table, made)
    if len(_checked) > _CHECKED_MAX:
        _checked.popitem(last=False)
    return made


def _unwrapped(table: Tensor) -> Tensor:
    """The table itself, where a derivative of torch.func wraps what is made inside it.

    Raises:
        ValueError: no memory that could be read, as where vmap maps over orders.
    """
    while torch._C._functorch.is_gradtrackingtensor(table):
        table = torch._C._functorch.get_unwrapped(table)
    if not torch._C._has_storage(table):
        raise ValueError("order has no memory of its own, as one of several that vmap maps over; expected one for all")
    return table


def kept_for_graphs(table: ScanTable) -> ScanTable:
    """The table itself. One that a CUDA graph is captured with is kept for good, as replays read its memory: caches of
    tables may let go of it."""
    if table.table.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _of_graphs.add(table)
    return table


_of_graphs: set[ScanTable] = set()


def output_rows(
    order: ScanTable | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """Memory for the rows of tokens that a walk writes: zeroed unless it writes every row, once."""
    make = torch.empty if order is None or order.writes_each_row_once else torch.zeros
    return make(shape, dtype=dtype, device=device)
