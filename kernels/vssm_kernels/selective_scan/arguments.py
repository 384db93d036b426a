"""The arguments of the selective scan, checked once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScanArguments:
    """What every backend receives. Shapes as in `selective_scan`; `segment` 0 means never reset."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor | None
    D: Tensor | None
    delta_bias: Tensor | None
    order: Tensor | None
    segment: int

    @property
    def device(self) -> torch.device:
        return self.delta.device

    @property
    def batch(self) -> int:
        return self.delta.shape[0]

    @property
    def tokens(self) -> int:
        return self.delta.shape[1]

    @property
    def directions(self) -> int:
        return self.delta.shape[2]

    @property
    def channels(self) -> int:
        return self.delta.shape[3]

    @property
    def state(self) -> int:
        return self.A.shape[2]

    @property
    def steps(self) -> int:
        return self.tokens if self.order is None else self.order.shape[1]

    @property
    def shared_input(self) -> bool:
        """Whether all directions read one u."""
        return self.u.dim() == 3

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of the scan before any merge: one output, or one state, per token, direction and channel."""
        shape = (self.batch, self.tokens, self.directions, self.channels)
        return shape if self.C is not None else (*shape, self.state)

    def replace(self, **changes: Tensor | None) -> ScanArguments:
        return replace(self, **changes)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The differentiable tensors, in the order in which `backward` returns their gradients."""
        return (self.u, self.delta, self.A, self.B, self.C, self.D, self.delta_bias)


def check_low_rank(delta: Tensor, delta_weight: Tensor) -> None:
    """Raise unless delta is (batch, tokens, directions, rank) and its weight (directions, channels, rank)."""
    fits = delta.dim() == 4 and delta_weight.dim() == 3
    if not fits or delta_weight.shape[0] != delta.shape[2] or delta_weight.shape[2] != delta.shape[3]:
        raise ValueError(
            f"delta has shape {tuple(delta.shape)} and delta_weight {tuple(delta_weight.shape)}; expected "
            f"(batch, tokens, directions, rank) and (directions, channels, rank)"
        )
    if delta.device != delta_weight.device:
        raise ValueError(
            f"delta_weight is on {delta_weight.device} but delta on {delta.device}; move both to one device"
        )


def check_shapes(args: ScanArguments, z: Tensor | None, merge: bool) -> None:
    """Raise with got, expected and what to do, for anything that the backends could not read."""
    if args.delta.dim() != 4:
        raise ValueError(f"delta has shape {tuple(args.delta.shape)}; expected (batch, tokens, directions, channels)")
    batch, tokens, directions, channels = args.delta.shape
    if args.A.dim() != 3 or args.A.shape[:2] != (directions, channels):
        raise ValueError(
            f"A has shape {tuple(args.A.shape)}; expected (directions, channels, state) = "
            f"({directions}, {channels}, state), as delta has {directions} directions of {channels} channels"
        )
    state = args.A.shape[2]
    expected = {
        "B": (args.B, (batch, tokens, directions, state), "(batch, tokens, directions, state)"),
        "C": (args.C, (batch, tokens, directions, state), "(batch, tokens, directions, state)"),
        "D": (args.D, (directions, channels), "(directions, channels)"),
        "delta_bias": (args.delta_bias, (directions, channels), "(directions, channels)"),
        "z": (z, (batch, tokens, channels), "(batch, tokens, channels)"),
    }
    for name, (tensor, shape, words) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {words} = {shape}")
    if args.u.shape not in (torch.Size((batch, tokens, channels)), args.delta.shape):
        raise ValueError(
            f"u has shape {tuple(args.u.shape)}; expected (batch, tokens, channels) = {(batch, tokens, channels)}, "
            f"shared by the directions, or {tuple(args.delta.shape)}, one input per direction"
        )
    if tokens < 1 or channels < 1 or directions < 1 or not 1 <= state <= 256:
        raise ValueError(
            f"tokens, directions and channels must be at least 1 and state 1 to 256; got tokens={tokens}, "
            f"directions={directions}, channels={channels}, state={state}"
        )
    if args.segment < 0:
        raise ValueError(f"segment is {args.segment}; expected a number of steps of at least 1, or None")
    if z is not None and not merge:
        raise ValueError("a gate z needs merge=True: it multiplies the sum over the directions")
    if z is not None and args.C is None:
        raise ValueError("a gate z needs C: states (C=None) are returned ungated")
    if args.D is not None and args.C is None:
        raise ValueError("D needs C: the skip connection is part of the output, not of the states (C=None)")
    for name, tensor in (("u", args.u), ("delta", args.delta), ("B", args.B), ("C", args.C), ("z", z)):
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} is {tensor.dtype}; expected a floating-point tensor")
    if args.order is not None:
        if args.order.dim() != 2 or args.order.shape[0] != directions or args.order.shape[1] < 1:
            raise ValueError(
                f"order has shape {tuple(args.order.shape)}; expected (directions, steps) = ({directions}, steps)"
            )
        if args.order.dtype != torch.int32:
            raise TypeError(f"order is {args.order.dtype}; expected torch.int32 (use order.to(torch.int32))")
    for name, tensor in zip(
        ("u", "A", "B", "C", "D", "delta_bias", "order", "z"),
        (args.u, args.A, args.B, args.C, args.D, args.delta_bias, args.order, z),
        strict=True,
    ):
        if tensor is not None and tensor.device != args.delta.device:
            raise ValueError(f"{name} is on {tensor.device} but delta on {args.delta.device}; move both to one device")
