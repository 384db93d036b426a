"""The arguments of the scan of a tree."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vssm_kernels.grid_tree.arguments import ROWS


class TreeScanArguments(NamedTuple):
    """What every backend receives; shapes as in `tree_scan`."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    delta_bias: Tensor
    tree: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """The differentiable tensors, in the order in which `backward` returns their gradients."""
        return self[:-1]

    @property
    def device(self) -> torch.device:
        return self.u.device

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.u.shape

    @property
    def output_dtype(self) -> torch.dtype:
        return torch.promote_types(self.u.dtype, torch.float32)

    def for_backward(self, saved: None) -> TreeScanArguments:
        return self

    def wide(self) -> tuple[Tensor, ...]:
        """The differentiable tensors in the dtype of the output."""
        return tuple(tensor.to(self.output_dtype) for tensor in self.tensors())

    def check(self) -> None:
        """Raise with got and expected for anything that does not fit."""
        u, tree = self.u, self.tree
        if u.dim() != 3:
            raise ValueError(f"u has shape {tuple(u.shape)}; expected (batch, tokens, channels)")
        batch, tokens, channels = u.shape
        per_channel = ("(channels,)", (channels,))
        expected = {
            "delta": ("(batch, tokens, channels)", (batch, tokens, channels)),
            "A": per_channel,
            "B": ("(batch, tokens)", (batch, tokens)),
            "delta_bias": per_channel,
            "tree": (f"(batch, {ROWS}, tokens)", (batch, ROWS, tokens)),
        }
        for name, (meaning, shape) in expected.items():
            if (got := getattr(self, name).shape) != shape:
                raise ValueError(
                    f"{name} has shape {tuple(got)}; expected {meaning} = {shape}, as u is {tuple(u.shape)}"
                )
        if tree.dtype != torch.int32:
            raise TypeError(f"tree is {tree.dtype}; expected torch.int32, as grid_tree makes it")
        if tree.device != u.device:
            raise ValueError(f"tree is on {tree.device} but u on {u.device}; move both to one device")
