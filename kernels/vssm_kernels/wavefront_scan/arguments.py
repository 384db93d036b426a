"""The arguments of the wavefront scan, checked once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

WAYS = 2  # into a position: from above, and from the left


class WavefrontArguments(NamedTuple):
    """What every backend receives. Shapes as in `wavefront_scan`."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    delta_bias: Tensor | None = None
    reverse: bool = False

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The differentiable tensors, in the order in which `backward` returns their gradients."""
        return self[:7]

    @property
    def device(self) -> torch.device:
        return self.u.device

    @property
    def state(self) -> int:
        return self.A.shape[2]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(batch, height, width, channels)."""
        return self.u.shape

    @property
    def output_dtype(self) -> torch.dtype:
        return self.u.dtype

    def for_backward(self, saved: None) -> WavefrontArguments:
        return self

    def cast(self, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients in the dtypes of their tensors; None where a tensor is None."""
        return tuple(
            None if tensor is None else gradient.to(tensor.dtype)
            for gradient, tensor in zip(gradients, self.tensors(), strict=True)
        )

    def check(self) -> None:
        """Raise with got and expected for anything that the backends could not read."""
        if self.u.dim() != 4:
            raise ValueError(f"u has shape {tuple(self.u.shape)}; expected (batch, height, width, channels)")
        *grid, channels = self.u.shape
        state = self.A.shape[-1] if self.A.dim() else 0
        shapes = {
            "delta": ("(batch, height, width, 2, channels)", (*grid, WAYS, channels)),
            "A": ("(2, channels, state)", (WAYS, channels, state)),
            "B": ("(batch, height, width, 2, state)", (*grid, WAYS, state)),
            "C": ("(batch, height, width, state)", (*grid, state)),
            "D": ("(channels,)", (channels,)),
            "delta_bias": ("(2, channels)", (WAYS, channels)),
        }
        for name, tensor in zip(self._fields, self.tensors(), strict=False):
            meaning, shape = shapes.get(name, ("", self.u.shape))
            if tensor is not None and tensor.shape != shape:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}; expected {meaning} = {tuple(shape)}, as u is "
                    f"{tuple(self.u.shape)} and A {tuple(self.A.shape)}"
                )
        # One by one: the smallest of them would tie an exported program to maps of some shape.
        if any(size < 1 for size in (*grid[1:], channels, state)) or state > 256:
            raise ValueError(
                f"height, width and channels must be at least 1 and state 1 to 256; got u {tuple(self.u.shape)} and "
                f"A {tuple(self.A.shape)}"
            )
