"""The arguments of the norm, with or without the sum over directions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vssm_kernels.saturation import saturate


class NormArguments(NamedTuple):
    """What every backend receives; shapes as in `sum_norm`."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    center: bool
    dtype: torch.dtype
    merge: bool
    groups: int = 1

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The differentiable tensors, in the order in which `backward` returns their gradients."""
        return self.x, self.weight, self.bias

    @property
    def device(self) -> torch.device:
        return self.x.device

    @property
    def directions(self) -> int:
        return self.x.shape[-2] if self.merge else 1

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (*self.x.shape[:-2], self.x.shape[-1]) if self.merge else tuple(self.x.shape)

    @property
    def output_dtype(self) -> torch.dtype:
        return self.dtype

    def saved(self, dtype: torch.dtype) -> tuple[tuple[int, ...], torch.dtype] | None:
        """Shape and dtype of the sums, as one direction, that a forward saves where x is not the sum itself."""
        return ((*self.x.shape[:-2], 1, self.x.shape[-1]), dtype) if self.directions > 1 else None

    def for_backward(self, sums: Tensor | None) -> NormArguments:
        """With the sums, which are smaller than x, as its only direction."""
        if sums is None and self.directions > 1:
            sums = self.summed()
        return self if sums is None else NormArguments(sums, *self[1:])

    def summed(self) -> Tensor:
        """The sum over the directions as one direction, rounded to x's dtype."""
        wide = torch.promote_types(self.x.dtype, torch.float32)
        return saturate(self.x.sum(-2, keepdim=True, dtype=wide), self.x.dtype)

    def check(self) -> None:
        """Raise ValueError, with got and expected, for anything that the backends could not read."""
        x = self.x
        if x.dim() < 1 + self.merge or not x.is_floating_point():
            expected = "(..., directions, channels)" if self.merge else "(..., channels)"
            raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}; expected floats {expected}")
        channels = x.shape[-1:]
        for name, tensor in (("weight", self.weight), ("bias", self.bias)):
            if tensor is None:
                continue
            if tensor.shape != channels:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}; expected {tuple(channels)}, the channels of x"
                )
            if not tensor.is_floating_point():
                raise ValueError(f"{name} is {tensor.dtype}; expected a floating-point tensor")
            if tensor.device != x.device:
                raise ValueError(f"{name} is on {tensor.device} but x on {x.device}; move both to one device")
        if self.groups < 1 or x.shape[-1] % self.groups:
            raise ValueError(f"x has {x.shape[-1]} channels and groups is {self.groups}; expected a divisor of them")
        if not self.eps > 0:
            raise ValueError(f"eps is {self.eps}; expected a positive number, as rows of zeros are divided by its root")
