"""The arguments of the selective scan, checked once."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vssm_kernels.orders import ScanTable, as_scan_table


class ScanArguments(NamedTuple):
    """What every backend receives. Shapes as in `selective_scan`; order None is raster, segment 0 never resets, dtype
    None is u's.

    `states` are what the forward of the triton backend saved for its backward.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor | None
    D: Tensor | None
    delta_bias: Tensor | None
    delta_weight: Tensor | None = None
    states: Tensor | None = None
    order: ScanTable | None = None
    segment: int = 0
    dtype: torch.dtype | None = None

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The differentiable tensors, in the order in which `backward` returns their gradients."""
        return self[:8]

    @property
    def device(self) -> torch.device:
        return self.u.device

    @property
    def batch(self) -> int:
        return self.u.shape[0]

    @property
    def tokens(self) -> int:
        return self.u.shape[1]

    @property
    def directions(self) -> int:
        return self.A.shape[0]

    @property
    def channels(self) -> int:
        return self.A.shape[1]

    @property
    def state(self) -> int:
        return self.A.shape[2]

    @property
    def steps(self) -> int:
        return self.tokens if self.order is None else self.order.steps

    @property
    def repeats(self) -> bool:
        """Whether a direction may visit a token twice."""
        return self.order is not None and self.order.repeats

    @property
    def shared_input(self) -> bool:
        """Whether all directions read one u."""
        return self.u.dim() == 3

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(batch, tokens, directions, channels)."""
        return self.batch, self.tokens, self.directions, self.channels

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of the scan before any merge: one output, or one state, per token, direction and channel."""
        return self.row_shape if self.C is not None else (*self.row_shape, self.state)

    @property
    def output_dtype(self) -> torch.dtype:
        return self.u.dtype if self.dtype is None else self.dtype

    def for_backward(self, states: Tensor | None) -> ScanArguments:
        return self._replace(states=states)

    def cast(self, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of u, delta, A, B, C, D and delta_bias in these tensors' dtypes; None where a tensor is None."""
        return *(
            None if tensor is None else gradient.to(tensor.dtype)
            for gradient, tensor in zip(gradients, self[:7], strict=True)
        ), None

    def check(self) -> None:
        """Raise with got, expected and what to do, for anything that the backends could not read."""
        u, delta, A, B, C, D, delta_bias, delta_weight = self.tensors()
        if delta.dim() != 4:
            raise ValueError(f"delta has shape {tuple(delta.shape)}; expected (batch, tokens, directions, channels)")
        batch, tokens, directions, channels = delta.shape
        if delta_weight is not None:
            rank = channels
            channels = math.prod(delta_weight.shape[:-1]) // max(1, directions)
            expected = (directions, channels, rank), (directions * channels, directions * rank)
            if delta_weight.shape not in expected:
                raise ValueError(
                    f"delta has shape {tuple(delta.shape)} and delta_weight {tuple(delta_weight.shape)}; expected "
                    f"(batch, tokens, directions, rank) and (directions, channels, rank), or the same side by side, "
                    f"(directions * channels, directions * rank)"
                )
        if A.dim() != 3 or A.shape[:2] != (directions, channels):
            raise ValueError(
                f"A has shape {tuple(A.shape)}; expected (directions, channels, state) = "
                f"({directions}, {channels}, state), as delta has {directions} directions of {channels} channels"
            )
        state = A.shape[2]
        rows, per_channel = (batch, tokens, directions, state), (directions, channels)
        if B.shape != rows:
            raise ValueError(f"B has shape {tuple(B.shape)}; expected (batch, tokens, directions, state) = {rows}")
        if C is not None and C.shape != rows:
            raise ValueError(f"C has shape {tuple(C.shape)}; expected (batch, tokens, directions, state) = {rows}")
        if D is not None and D.shape != per_channel:
            raise ValueError(f"D has shape {tuple(D.shape)}; expected (directions, channels) = {per_channel}")
        if delta_bias is not None and delta_bias.shape != per_channel:
            raise ValueError(
                f"delta_bias has shape {tuple(delta_bias.shape)}; expected (directions, channels) = {per_channel}"
            )
        if u.shape != (batch, tokens, channels) and u.shape != (batch, tokens, directions, channels):
            raise ValueError(
                f"u has shape {tuple(u.shape)}; expected (batch, tokens, channels) = {(batch, tokens, channels)}, "
                f"shared by the directions, or {(batch, tokens, directions, channels)}, one input per direction"
            )
        if tokens < 1 or channels < 1 or directions < 1 or not 1 <= state <= 256:
            raise ValueError(
                f"tokens, directions and channels must be at least 1 and state 1 to 256; got tokens={tokens}, "
                f"directions={directions}, channels={channels}, state={state}"
            )
        if D is not None and C is None:
            raise ValueError("D needs C: the skip connection is part of the output, not of the states (C=None)")
        if self.order is not None:
            as_scan_table(self.order, directions, tokens, delta.device)
