"""The sum over a scan's directions, and the gate behind it: the public function."""

from __future__ import annotations

import torch
from torch import Tensor

from vssm_kernels.dispatch import register
from vssm_kernels.sum_gate import native_cpu, reference, triton_fused
from vssm_kernels.sum_gate.reference import GateArguments

_registry = register("sum_gate", [native_cpu.BACKEND, triton_fused.BACKEND, reference.BACKEND])


def sum_gate(y: Tensor, z: Tensor | None, scale: float = 1.0) -> Tensor:
    """scale * (sum of y over the directions) * silu(z), in float32 (float64 for float64 inputs), rounded once.

    Plain torch wherever a compiler or a trace looks on: this is all that a compiler needs to fuse it. Eager it is one
    kernel each way, in Triton on a GPU and in C on a CPU.

    Args:
        y: (batch, tokens, directions, channels), the output of a scan.
        z: (batch, tokens, channels), any strides; half of a projection is read where it lies. None for the sum alone.
        scale: 1 / directions makes the sum a mean.

    Returns:
        (batch, tokens, channels), in y's dtype.

    Raises:
        ValueError: shapes that do not fit.

    Source: Mamba, arXiv 2312.00752; the mean of both directions in Vim, arXiv 2401.09417.

    >>> import torch
    >>> sum_gate(torch.ones(1, 3, 2, 4), torch.zeros(1, 3, 4)).shape
    torch.Size([1, 3, 4])
    """
    if y.dim() != 4 or (z is not None and z.shape != (*y.shape[:2], y.shape[3])):
        raise ValueError(
            f"y has shape {tuple(y.shape)} and z {None if z is None else tuple(z.shape)}; expected "
            f"(batch, tokens, directions, channels) and (batch, tokens, channels)"
        )
    args = GateArguments(y, z, scale)
    if torch.compiler.is_compiling():
        return reference.gate(args)
    return _registry.choose(args).forward(args)
