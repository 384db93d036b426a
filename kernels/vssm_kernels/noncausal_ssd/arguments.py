"""The arguments of non-causal state-space duality."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SSDArguments(NamedTuple):
    """What the backends receive; shapes as in `noncausal_ssd`."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    delta_bias: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """The differentiable tensors, in the order in which `backward` returns their gradients."""
        return self[:]

    @property
    def device(self) -> torch.device:
        return self.u.device

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.u.shape

    @property
    def output_dtype(self) -> torch.dtype:
        return torch.promote_types(self.u.dtype, torch.float32)

    def for_backward(self, saved: None) -> SSDArguments:
        return self

    def wide(self) -> SSDArguments:
        """All tensors in the dtype of the output."""
        return SSDArguments(*(tensor.to(self.output_dtype) for tensor in self))

    def check(self) -> None:
        """Raise with got and expected for anything that does not fit."""
        if self.u.dim() != 4:
            raise ValueError(f"u has shape {tuple(self.u.shape)}; expected (batch, tokens, heads, channels)")
        *rows, heads, _ = self.u.shape
        states = ("(batch, tokens, state)", (*rows, *self.B.shape[-1:]))
        per_head = ("(heads,)", (heads,))
        expected = (("(batch, tokens, heads)", (*rows, heads)), per_head, states, states, per_head, per_head)
        for name, tensor, (meaning, shape) in zip(self._fields[1:], self[1:], expected, strict=True):
            if tensor.shape != shape:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}; expected {meaning} = {shape}, as u is "
                    f"{tuple(self.u.shape)}"
                )
