"""The arguments of deformable sampling."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SAMPLES = 9  # of a window of 3 x 3
NUMBERS = 3 * SAMPLES  # predicted for each group: two offsets and a weight for each sample


class SamplingArguments(NamedTuple):
    """What every backend receives; shapes as in `deformable_sampling`."""

    x: Tensor
    predicted: Tensor
    groups: int

    def tensors(self) -> tuple[Tensor, ...]:
        """The differentiable tensors, in the order in which `backward` returns their gradients."""
        return self.x, self.predicted

    @property
    def device(self) -> torch.device:
        return self.x.device

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.x.shape

    @property
    def output_dtype(self) -> torch.dtype:
        return self.x.dtype

    @property
    def wide_dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        dtype = torch.promote_types(self.x.dtype, self.predicted.dtype)
        return torch.promote_types(dtype, torch.float32)

    def for_backward(self, saved: None) -> SamplingArguments:
        return self

    def check(self) -> None:
        """Raise with got and expected for anything that does not fit."""
        x, predicted, groups = self
        if x.dim() != 4 or not x.shape[1] or not x.shape[2]:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (batch, height, width, channels), at least 1 x 1")
        if groups < 1 or x.shape[3] % groups:
            raise ValueError(f"{groups} groups share {x.shape[3]} channels; expected a number that divides them")
        if predicted.dim() != 4 or predicted.shape[:3] != x.shape[:3] or predicted.shape[3] < NUMBERS * groups:
            raise ValueError(
                f"predicted has shape {tuple(predicted.shape)}; expected (batch, height, width, {NUMBERS} for each of "
                f"{groups} groups, or more), as x is {tuple(x.shape)}"
            )
