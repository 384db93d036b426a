"""The arguments of the causal convolution, checked once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ConvArguments:
    """What every backend receives; shapes as in `causal_conv1d`."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    order: Tensor
    silu: bool

    @property
    def device(self) -> torch.device:
        return self.x.device

    @property
    def output_shape(self) -> tuple[int, ...]:
        batch, tokens, channels = self.x.shape
        return batch, tokens, self.order.shape[0], channels

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The differentiable tensors, in the order in which `backward` returns their gradients."""
        return self.x, self.weight, self.bias


def check_shapes(args: ConvArguments) -> None:
    """Raise with got, expected and what to do, for anything that the backends could not read."""
    if args.x.dim() != 3 or not args.x.is_floating_point():
        raise ValueError(
            f"x is {args.x.dtype} of shape {tuple(args.x.shape)}; expected floats (batch, tokens, channels)"
        )
    if args.order.dim() != 2 or args.order.shape[1] < 1:
        raise ValueError(f"order has shape {tuple(args.order.shape)}; expected (directions, steps)")
    if args.order.dtype != torch.int32:
        raise TypeError(f"order is {args.order.dtype}; expected torch.int32 (use order.to(torch.int32))")
    directions, channels = args.order.shape[0], args.x.shape[2]
    if args.weight.dim() != 3 or args.weight.shape[:2] != (directions, channels) or args.weight.shape[2] < 1:
        raise ValueError(
            f"weight has shape {tuple(args.weight.shape)}; expected (directions, channels, width) = "
            f"({directions}, {channels}, width), as order has {directions} directions and x {channels} channels"
        )
    if args.bias is not None and args.bias.shape != args.weight.shape[:2]:
        raise ValueError(f"bias has shape {tuple(args.bias.shape)}; expected {tuple(args.weight.shape[:2])}")
    for name, tensor in (("weight", args.weight), ("bias", args.bias), ("order", args.order)):
        if tensor is not None and tensor.device != args.x.device:
            raise ValueError(f"{name} is on {tensor.device} but x on {args.x.device}; move both to one device")
