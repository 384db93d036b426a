"""The arguments of the tree of a map."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 4  # of a tree's table, see `grid_tree`


class MapArguments(NamedTuple):
    """What every backend receives: (batch, height, width, channels)."""

    x: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Detached, but looked at by compilers and modes as others are."""
        return (self.x,)

    @property
    def device(self) -> torch.device:
        return self.x.device

    @property
    def output_shape(self) -> tuple[int, ...]:
        batch, height, width, _ = self.x.shape
        return batch, ROWS, height * width

    @property
    def output_dtype(self) -> torch.dtype:
        return torch.int32

    def for_backward(self, saved: None) -> MapArguments:
        return self

    def check(self) -> None:
        """Raise ValueError, with got and expected, for anything that has no tree."""
        x = self.x
        if x.dim() != 4 or x.shape[1] * x.shape[2] < 1:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; expected (batch, height, width, channels) with at least one position"
            )


def no_gradient(args: MapArguments, gradient: Tensor) -> tuple[None]:
    """A tree is a table of integers."""
    return (None,)
