"""The arguments of the sum over directions with its gate."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class GateArguments(NamedTuple):
    """What every backend receives; shapes as in `sum_gate`. A backward without gate needs no y."""

    y: Tensor | None
    z: Tensor | None
    scale: float

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The differentiable tensors, in the order in which `backward` returns their gradients."""
        return self.y, self.z

    @property
    def device(self) -> torch.device:
        return self.y.device

    @property
    def output_shape(self) -> tuple[int, ...]:
        batch, tokens, _, channels = self.y.shape
        return batch, tokens, channels

    @property
    def output_dtype(self) -> torch.dtype:
        return self.y.dtype

    def saved(self, dtype: torch.dtype) -> tuple[tuple[int, ...], torch.dtype] | None:
        """Shape and dtype of the sum, as one direction, that a forward saves where a gate needs it and y is not it."""
        batch, tokens, directions, channels = self.y.shape
        return None if self.z is None or directions == 1 else ((batch, tokens, 1, channels), dtype)

    def for_backward(self, summed: Tensor | None) -> GateArguments:
        """With the sum, which is smaller than y, as the only direction of y."""
        if self.z is None:
            return GateArguments(None, None, self.scale)
        if summed is None:
            summed = self.y
            if summed.shape[2] > 1:
                summed = summed.sum(2, keepdim=True, dtype=torch.promote_types(summed.dtype, torch.float32))
        return GateArguments(summed, self.z, self.scale)

    def check(self) -> None:
        """Raise ValueError, with got and expected, for shapes and numbers that do not fit."""
        y, z = self.y, self.z
        if y.dim() != 4 or (z is not None and z.shape != self.output_shape):
            raise ValueError(
                f"y has shape {tuple(y.shape)} and z {None if z is None else tuple(z.shape)}; expected "
                f"(batch, tokens, directions, channels) and (batch, tokens, channels)"
            )
