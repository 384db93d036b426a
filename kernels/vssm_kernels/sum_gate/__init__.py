"""The sum over a scan's directions, and the gate behind it: the public function and its op."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import Tensor

from vssm_kernels.dispatch import is_watched
from vssm_kernels.kinds import Latest, kind_of
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
        ValueError: shapes or devices that do not fit.
        TypeError: integers where floats belong.

    Source: Mamba, arXiv 2312.00752; the mean of both directions in Vim, arXiv 2401.09417.

    >>> import torch
    >>> sum_gate(torch.ones(1, 3, 2, 4), torch.zeros(1, 3, 4)).shape
    torch.Size([1, 3, 4])
    """
    return OP(GateArguments(y, z, float(scale)))


def sum_gate_again(total: Tensor, z: Tensor, scale: float, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For a backward that has not saved what `sum_gate` returned: this, and the gradients of the sum and of z.

    Args:
        total: (batch, tokens, channels), the sum over the directions.
        z, scale: as for `sum_gate`.
        gradient: of the output, (batch, tokens, channels).

    >>> import torch
    >>> value, dtotal, dz = sum_gate_again(torch.ones(1, 3, 4), torch.zeros(1, 3, 4), 1.0, torch.ones(1, 3, 4))
    >>> value[0, 0, 0].item(), dtotal[0, 0, 0].item(), dz[0, 0, 0].item()
    (0.0, 0.0, 0.5)
    """
    args = GateArguments(total.unsqueeze(2), z, float(scale))
    kind = None if is_watched() or total.is_meta else kind_of((*args, gradient))
    backend = OP.reference if kind is None else OP.choose(args)
    if backend is triton_fused.BACKEND:
        run = _again.get(kind)
        if run is None:
            run = _again[kind] = triton_fused.plan_gate_again(args, gradient)
        value, dsum, dz = run(args, gradient)
    else:
        value, (dsum, dz) = OP.run_forward(backend, args, False)[0], OP.run_backward(backend, args, gradient)
    return value, dsum.squeeze(2).to(total.dtype), dz


_again: dict[Hashable, Callable[[GateArguments, Tensor], tuple[Tensor, Tensor, Tensor]]] = Latest()
