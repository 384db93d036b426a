"""The arguments of the readout of states."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ReadoutArguments(NamedTuple):
    """What every backend receives; shapes as in `readout`."""

    states: Tensor
    C: Tensor
    D: Tensor
    u: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """The differentiable tensors, in the order in which `backward` returns their gradients."""
        return self[:]

    @property
    def device(self) -> torch.device:
        return self.states.device

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.u.shape

    @property
    def output_dtype(self) -> torch.dtype:
        return self.u.dtype

    def for_backward(self, saved: None) -> ReadoutArguments:
        return self

    def check(self) -> None:
        """Raise ValueError, with got and expected, for shapes that do not fit."""
        if self.states.dim() != 4:
            raise ValueError(
                f"states have shape {tuple(self.states.shape)}; expected (batch, directions, tokens, channels)"
            )
        batch, directions, tokens, channels = self.states.shape
        expected = {
            "C": ("(batch, tokens, directions)", (batch, tokens, directions)),
            "D": ("(directions, channels)", (directions, channels)),
            "u": ("(batch, tokens, channels)", (batch, tokens, channels)),
        }
        for name, (meaning, shape) in expected.items():
            if (got := getattr(self, name).shape) != shape:
                raise ValueError(
                    f"{name} has shape {tuple(got)}; expected {meaning} = {shape}, as states are "
                    f"{tuple(self.states.shape)}"
                )
