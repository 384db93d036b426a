"""The sum over a scan's directions, and the gate behind it: the public function and its op."""

from __future__ import annotations

from torch import Tensor

from vssm_kernels.op import Op
from vssm_kernels.sum_gate import native_cpu, reference, triton_fused
from vssm_kernels.sum_gate.arguments import GateArguments

OP = Op(
    "sum_gate",
    GateArguments,
    [native_cpu.BACKEND, triton_fused.BACKEND, reference.BACKEND],
    fused=True,
    saves_sums=True,
)


def sum_gate(y: Tensor, z: Tensor | None, scale: float = 1.0) -> Tensor:
    """scale * (sum of y over the directions) * silu(z), in float32 (float64 for float64 inputs), rounded once.

    Eager it is one kernel each way, in Triton on a GPU and in C on a CPU. Compilers are given plain operations of
    torch, which they fuse as well.

    Args:
        y: (batch, tokens, directions, channels), the output of a scan.
        z: (batch, tokens, channels), any strides: half of a projection needs no copy. None for the sum alone.
        scale: 1 / directions makes the sum a mean.

    Returns:
        (batch, tokens, channels), in y's dtype.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.

    Source: Mamba, arXiv 2312.00752; the mean of both directions in Vim, arXiv 2401.09417.

    >>> import torch
    >>> sum_gate(torch.ones(1, 3, 2, 4), torch.zeros(1, 3, 4)).shape
    torch.Size([1, 3, 4])
    """
    return OP(GateArguments(y, z, float(scale)))
