"""The arguments of the causal convolution."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vssm_kernels.orders import ScanTable, as_scan_table


class ConvArguments(NamedTuple):
    """What every backend receives; shapes as in `causal_conv1d`."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    order: ScanTable
    silu: bool

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The differentiable tensors, in the order in which `backward` returns their gradients."""
        return self.x, self.weight, self.bias

    @property
    def device(self) -> torch.device:
        return self.x.device

    @property
    def tokens(self) -> int:
        return self.x.shape[1]

    @property
    def directions(self) -> int:
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        return self.weight.shape[2]

    @property
    def output_shape(self) -> tuple[int, ...]:
        batch, tokens, channels = self.x.shape
        return batch, tokens, self.directions, channels

    @property
    def output_dtype(self) -> torch.dtype:
        return self.x.dtype

    def for_backward(self, saved: None) -> ConvArguments:
        return self

    def check(self) -> None:
        """Raise with got, expected and what to do, for anything that the backends could not read."""
        x, weight, bias = self.tensors()
        if x.dim() != 3 or not x.is_floating_point():
            raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}; expected floats (batch, tokens, channels)")
        channels = x.shape[2]
        if weight.dim() != 3 or weight.shape[1] != channels or weight.shape[2] < 1:
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}; expected (directions, channels, width) = "
                f"(directions, {channels}, width), as x has {channels} channels"
            )
        if bias is not None and bias.shape != weight.shape[:2]:
            raise ValueError(f"bias has shape {tuple(bias.shape)}; expected {tuple(weight.shape[:2])}")
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None and not tensor.is_floating_point():
                raise ValueError(f"{name} is {tensor.dtype}; expected a floating-point tensor")
            if tensor is not None and tensor.device != x.device:
                raise ValueError(f"{name} is on {tensor.device} but x on {x.device}; move both to one device")
        as_scan_table(self.order, self.directions, x.shape[1], x.device)
