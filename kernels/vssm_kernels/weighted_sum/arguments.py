"""The arguments of the weighted sum over directions, and of their means."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class WeightedArguments(NamedTuple):
    """What every backend receives; shapes as in `weighted_sum`, the weights with all channels."""

    y: Tensor
    weights: Tensor
    z: Tensor | None

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The differentiable tensors, in the order in which `backward` returns their gradients."""
        return self[:]

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

    def for_backward(self, saved: None) -> WeightedArguments:
        return self

    def check(self) -> None:
        """Raise ValueError, with got and expected, for shapes and numbers that do not fit."""
        MeanArguments(self.y, self.z).check()
        batch, _, directions, channels = self.y.shape
        if self.weights.shape != (batch, directions, channels):
            raise ValueError(
                f"weights have shape {tuple(self.weights.shape)}; expected {(batch, directions, channels)}, (batch, "
                f"directions, channels or 1), as y is {tuple(self.y.shape)}"
            )


class MeanArguments(NamedTuple):
    """What every backend receives; shapes as in `direction_means`."""

    y: Tensor
    z: Tensor | None

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The differentiable tensors, in the order in which `backward` returns their gradients."""
        return self[:]

    @property
    def device(self) -> torch.device:
        return self.y.device

    @property
    def output_shape(self) -> tuple[int, ...]:
        batch, _, directions, channels = self.y.shape
        return batch, directions, channels

    @property
    def output_dtype(self) -> torch.dtype:
        return self.y.dtype

    def for_backward(self, saved: None) -> MeanArguments:
        return self

    def check(self) -> None:
        """Raise ValueError, with got and expected, for shapes and numbers that do not fit."""
        y, z = self
        if y.dim() != 4 or not y.shape[1] or (z is not None and z.shape != (*y.shape[:2], y.shape[3])):
            raise ValueError(
                f"y has shape {tuple(y.shape)} and z {None if z is None else tuple(z.shape)}; expected (batch, tokens, "
                f"directions, channels), at least one token, and (batch, tokens, channels)"
            )
