"""Kinds of arguments: how to run an op depends on the kind alone, so it is found out once for each."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

from vssm_kernels.dispatch import PLAIN_TENSORS
from vssm_kernels.orders import ScanTable


class Latest(dict):
    """A dict that is emptied before it holds more than a few thousand entries.

    What was just put in may be gone: another thread may have emptied it.
    """

    def __setitem__(self, key: Hashable, value: Any) -> None:
        if len(self) >= 4096:
            self.clear()
        super().__setitem__(key, value)


def kind_of(args: Sequence[Any]) -> tuple[Hashable, ...] | None:
    """All that the way to run arguments depends on, which is all but the numbers in their tensors.

    None where a tensor has no memory of its own that can be read by address: it is fake or wrapped, or its numbers are
    the negatives of those in its memory, as the imaginary part of a conjugate's are.
    """
    kind: list[Hashable] = []
    for value in args:
        if type(value) in PLAIN_TENSORS and not value.is_neg():
            place = value.data_ptr() & 63  # what is read at once has at most 64 bytes
            kind.append((value.shape, value.stride(), value.dtype, value.device, place, value.requires_grad))
        elif type(value) is ScanTable:
            table = value.table
            if type(table) not in PLAIN_TENSORS:
                return None
            kind.append((table.shape, table.device, value.tokens, value.repeats, value.covers))
        elif value is not None and isinstance(value, Tensor):
            return None
        else:
            kind.append(value)
    return tuple(kind)
