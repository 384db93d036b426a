"""The arguments of state-space duality, checked once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vssm_kernels.orders import ScanTable, as_scan_table


class SSDArguments(NamedTuple):
    """What every backend receives. Shapes as in `ssd`; order None is raster.

    `states` are what the forward of the triton backend saved for its backward.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    initial: Tensor | None
    states: Tensor | None = None
    order: ScanTable | None = None
    shift: bool = False
    merge: bool = False

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
    def heads(self) -> int:
        return self.A.shape[1]

    @property
    def channels(self) -> int:
        return self.u.shape[-1]

    @property
    def groups(self) -> int:
        return self.B.shape[3]

    @property
    def state(self) -> int:
        return self.B.shape[4]

    @property
    def steps(self) -> int:
        return self.tokens if self.order is None else self.order.steps

    @property
    def repeats(self) -> bool:
        """Whether a direction may visit a token twice."""
        return self.order is not None and bool(self.order.repeats)

    @property
    def shared_input(self) -> bool:
        """Whether all directions read one u."""
        return self.u.dim() == 4

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(batch, tokens, directions, heads, channels)."""
        return self.batch, self.tokens, self.directions, self.heads, self.channels

    @property
    def output_shape(self) -> tuple[int, ...]:
        batch, tokens, _, heads, channels = self.row_shape
        return (batch, tokens, heads, channels) if self.merge else self.row_shape

    @property
    def output_dtype(self) -> torch.dtype:
        return self.u.dtype

    @property
    def wide_dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        present = [tensor for tensor in self.tensors() if tensor is not None]
        return torch.float64 if any(tensor.dtype == torch.float64 for tensor in present) else torch.float32

    def for_backward(self, states: Tensor | None) -> SSDArguments:
        return self._replace(states=states)

    def per_direction(self, gradient: Tensor) -> Tensor:
        """The gradient of the output as that of every direction's, (batch, tokens, directions, heads, channels)."""
        return gradient.unsqueeze(2).expand(self.row_shape) if self.merge else gradient

    def cast(self, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of `tensors()` in these tensors' dtypes; None where a tensor is None. That of u may still have
        the directions that share it."""
        du, *others = gradients
        if self.shared_input and du.dim() == 5:
            du = du.sum(2)
        return tuple(
            None if tensor is None else gradient.to(tensor.dtype)
            for gradient, tensor in zip((du, *others), self.tensors(), strict=True)
        )

    def check(self) -> None:
        """Raise with got, expected and what to do, for anything that the backends could not read."""
        u, delta, _, B, _, D, *_ = self.tensors()
        if delta.dim() != 4:
            raise ValueError(f"delta has shape {tuple(delta.shape)}; expected (batch, tokens, directions, heads)")
        batch, tokens, directions, heads = delta.shape
        shared, own = (batch, tokens, heads), (batch, tokens, directions, heads)
        if u.dim() not in (4, 5) or u.shape[:-1] not in (shared, own):
            raise ValueError(
                f"u has shape {tuple(u.shape)}; expected (batch, tokens, heads, channels) = {(*shared, 'channels')}, "
                f"shared by the directions, or {(*own, 'channels')}, one input per direction"
            )
        if B.dim() != 5 or B.shape[:3] != own[:3]:
            raise ValueError(
                f"B has shape {tuple(B.shape)}; expected (batch, tokens, directions, groups, state) = "
                f"{(*own[:3], 'groups', 'state')}"
            )
        groups, state = B.shape[3:]
        if min(tokens, directions, heads, u.shape[-1], groups, state) < 1 or heads % groups:
            raise ValueError(
                f"tokens, directions, heads, channels, groups and state must be at least 1, and heads a multiple of "
                f"groups; got tokens={tokens}, directions={directions}, heads={heads}, channels={u.shape[-1]}, "
                f"groups={groups}, state={state}"
            )
        per_head = ("(directions, heads)", (directions, heads))
        rows = ("(batch, tokens, directions, groups, state)", tuple(B.shape))
        start = ("(batch, directions, heads, channels, state)", (batch, directions, heads, u.shape[-1], state))
        expected = {"A": per_head, "C": rows, "D": per_head, "delta_bias": per_head, "initial": start}
        for name, (meaning, shape) in expected.items():
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {meaning} = {shape}")
        if self.shift and D is not None:
            raise ValueError("shift leaves out what a token gives to itself, and D is that: add D u to the output")
        if isinstance(self.order, ScanTable):
            as_scan_table(self.order, directions, tokens, delta.device)
