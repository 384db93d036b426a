"""What kernels must know of a scan order's table, read from it once and remembered."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OrderFacts:
    """What kernels must know of a table: a token visited twice is added to, one never visited is zero."""

    repeats: bool
    covers: bool


_RASTER = OrderFacts(repeats=False, covers=True)
_FACTS_KEPT = 256
# Keyed by address and version; the table itself is kept beside its facts so that its address is not reused.
_facts: OrderedDict[tuple, tuple[Tensor, OrderFacts]] = OrderedDict()


def order_facts(order: Tensor | None, tokens: int) -> OrderFacts:
    """Check a table's range and tell whether it repeats or misses tokens. Reads the table once, then remembers.

    Raises ValueError for an entry outside -1 ... tokens - 1, and RuntimeError when a CUDA graph is being captured
    before the table was ever read (reading it waits for the device, which a capture forbids).
    """
    if order is None:
        return _RASTER
    key = (order.data_ptr(), order.device, tuple(order.shape), order.stride(), order._version, tokens)
    if key in _facts:
        _facts.move_to_end(key)
        return _facts[key][1]
    if order.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("run the model once before capturing a CUDA graph: its scan order is not yet checked")
    table = order.cpu().long()
    low, high = int(table.min()), int(table.max())
    if low < -1 or high >= tokens:
        raise ValueError(
            f"order holds entries from {low} to {high}; expected token indices 0 to {tokens - 1}, "
            f"or -1 for an empty step"
        )
    visits = torch.zeros(table.shape[0], tokens + 1, dtype=torch.long)
    visits.scatter_add_(1, table + 1, torch.ones_like(table))
    visits = visits[:, 1:]
    facts = OrderFacts(repeats=bool((visits > 1).any()), covers=bool((visits > 0).all()))
    _facts[key] = (order, facts)
    if len(_facts) > _FACTS_KEPT:
        _facts.popitem(last=False)
    return facts


def output_rows(
    order: Tensor | None,
    tokens: int,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Memory for the rows of tokens that a walk writes: zeroed unless it writes every row, once."""
    facts = order_facts(order, tokens)
    make = torch.empty if facts.covers and not facts.repeats else torch.zeros
    return make(shape, dtype=dtype, device=device)
