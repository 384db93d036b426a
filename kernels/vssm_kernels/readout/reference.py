"""The readout of states in plain torch: the measure of the kernels, and what compilers fuse by themselves."""

from __future__ import annotations

from torch import Tensor

from vssm_kernels.dispatch import reference_backend
from vssm_kernels.readout.arguments import ReadoutArguments
from vssm_kernels.saturation import saturate, wide


def read(args: ReadoutArguments, save: bool = False) -> tuple[Tensor, None]:
    """(batch, tokens, channels), in u's dtype."""
    states, C, D, u = (wide(tensor) for tensor in args)
    return saturate((states * _by_direction(C)).sum(1) + D.sum(0) * u, args.output_dtype), None


def read_backward(args: ReadoutArguments, gradient: Tensor) -> tuple[Tensor, ...]:
    """The gradients of the states, of C, D and u."""
    states, C, D, u = (wide(tensor) for tensor in args)
    gradient = wide(gradient)
    each = gradient[:, None]
    dC = (each * states).sum(-1).transpose(1, 2)
    dD = (gradient * u).sum((0, 1)).expand(D.shape)
    found = each * _by_direction(C), dC, dD, gradient * D.sum(0)
    return tuple(one.to(given.dtype) for one, given in zip(found, args, strict=True))


def _by_direction(C: Tensor) -> Tensor:
    return C.transpose(1, 2).unsqueeze(-1)


BACKEND = reference_backend(read, read_backward)
