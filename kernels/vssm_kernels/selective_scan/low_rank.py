"""Step sizes of low rank: a backend multiplies them out before either walk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

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
        return backend.forward(_multiplied(args), save)

    def backward(args: ScanArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _through(backend.backward, args, gradient)

    def plan(args: ScanArguments, save: bool) -> Callable[[ScanArguments], tuple[Tensor, Tensor | None]]:
        run = backend.planned(_multiplied(args), save)
        return run if args.delta_weight is None else lambda args: run(_multiplied(args))

    def plan_backward(args: ScanArguments, gradient: Tensor) -> Callable[..., tuple[Tensor | None, ...]]:
        run = backend.planned_backward(_multiplied(args), gradient)
        return run if args.delta_weight is None else lambda args, gradient: _through(run, args, gradient)

    return replace(backend, forward=forward, backward=backward, plan=plan, plan_backward=plan_backward)


def _through(
    backward: Callable[[ScanArguments, Tensor], tuple[Tensor | None, ...]], args: ScanArguments, gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of all arguments from those of the whole step sizes."""
    if args.delta_weight is None:
        return backward(args, gradient)
    du, dproduct, *others, _ = backward(_multiplied(args), gradient)
    weight = args.delta_weight.to(args.delta.dtype)
    ddelta, dweight = directed_linear_backward(dproduct, args.delta, weight)
    return du, ddelta, *others, dweight.to(args.delta_weight.dtype)


def _multiplied(args: ScanArguments) -> ScanArguments:
    if args.delta_weight is None:
        return args
    u, delta, A, B, C, D, bias, weight, *others = args
    return ScanArguments(u, directed_linear(delta, weight.to(delta.dtype)), A, B, C, D, bias, None, *others)
