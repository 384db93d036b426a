"""Step sizes of low rank: a backend multiplies them out before either walk."""

from __future__ import annotations

from torch import Tensor

from vssm_kernels.directed_linear import directed_linear, directed_linear_backward
from vssm_kernels.dispatch import Backend
from vssm_kernels.selective_scan.arguments import ScanArguments


def with_low_rank(backend: Backend) -> Backend:
    """The backend, which takes whole step sizes, for a `delta_weight` too.

    The product is not saved for the backward, which computes it again: it is the largest tensor of a block, and the
    cheapest to compute.
    """

    def forward(args: ScanArguments, save: bool) -> tuple[Tensor, Tensor | None]:
        return backend.forward(args if args.delta_weight is None else _multiplied(args), save)

    def backward(args: ScanArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if args.delta_weight is None:
            return backend.backward(args, gradient)
        du, dproduct, *others, _ = backend.backward(_multiplied(args), gradient)
        weight = args.delta_weight.to(args.delta.dtype)
        ddelta, dweight = directed_linear_backward(dproduct, args.delta, weight)
        return du, ddelta, *others, dweight.to(args.delta_weight.dtype)

    return Backend(backend.name, forward, backward, backend.why_not, backend.saves, backend.is_recorded)


def _multiplied(args: ScanArguments) -> ScanArguments:
    delta = directed_linear(args.delta, args.delta_weight.to(args.delta.dtype))
    return args._replace(delta=delta, delta_weight=None)
