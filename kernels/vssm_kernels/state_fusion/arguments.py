"""The arguments of the fusion of states."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class FusionArguments(NamedTuple):
    """What every backend receives; shapes as in `state_fusion`."""

    states: Tensor
    weight: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """The differentiable tensors, in the order in which `backward` returns their gradients."""
        return self[:]

    @property
    def device(self) -> torch.device:
        return self.states.device

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.states.shape

    @property
    def output_dtype(self) -> torch.dtype:
        return torch.promote_types(self.states.dtype, torch.float32)

    @property
    def margin(self) -> int:
        """How far the largest dilation reads beyond the map."""
        return 2 * len(self.weight) - 1

    def for_backward(self, saved: None) -> FusionArguments:
        return self

    def wide(self) -> FusionArguments:
        """Both in the dtype of the output."""
        return FusionArguments(self.states.to(self.output_dtype), self.weight.to(self.output_dtype))

    def check(self) -> None:
        """Raise with got and expected for anything that does not fit."""
        states, weight = self
        if states.dim() != 4 or not states.shape[1] or not states.shape[2]:
            raise ValueError(
                f"states have shape {tuple(states.shape)}; expected (batch, height, width, channels), at least 1 x 1"
            )
        if weight.dim() != 4 or not len(weight) or weight.shape[1:] != (states.shape[3], 3, 3):
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}; expected (dilations, {states.shape[3]}, 3, 3), as states are "
                f"{tuple(states.shape)}"
            )
