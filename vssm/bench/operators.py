"""How any operator is checked against its reference, and timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from vssm.bench.timing import as_graph, median_time, peak_memory, time_in_a_row
from vssm_kernels.testing import relative_error

# What an operator is given, by name: floating-point tensors, which are differentiated, and orders, which are not.
Given = Mapping[str, Tensor]


def mean_square(output: Tensor) -> Tensor:
    return output.float().square().mean()


def check_backend(
    case: str,
    backend: str,
    run: Callable[[Given, str], Tensor],
    given: Given,
    tolerance: float,
    loss: Callable[[Tensor], Tensor] = mean_square,
) -> None:
    """Compare the output and all gradients of a backend, which `run` is told, with the reference's.

    Raises:
        AssertionError: one is off by more than the tolerance.
    """
    found = []
    for name in ("reference", backend):
        leaves, learned = _leaves(given)
        output = run(leaves, name)
        found.append([output.detach(), *torch.autograd.grad(loss(output), list(learned.values()))])
    for name, expected, actual in zip(("output", *learned), *found, strict=True):
        error = relative_error(actual, expected)
        assert error <= tolerance, f"{case}, {backend}: {name} is off by {error:.1e}; not timed"


def time_operator(
    run: Callable[[Given], Tensor], operands: Sequence[Given], device: torch.device, floor: float, called: bool = False
) -> dict[str, object]:
    """The columns of a row that are measured, as CUDA graphs on a GPU: a kernel may take less time than its launch.

    Args:
        run: the operator.
        operands: what it is given in turn.
        device: where.
        floor: seconds that a forward takes at least.
        called: also time it as Python calls it, on a GPU.
    """
    forward: list[Callable[[], object]] = [partial(run, given) for given in operands]
    both: list[Callable[[], object]] = [_forward_backward(run, given) for given in operands]
    peak = peak_memory(both[0], device)
    as_called: dict[str, object] = {}
    if called:
        as_called = {"forward_called_ms": None, "forward_backward_called_ms": None}
    if device.type == "cuda":
        if called:
            times = (1e3 * time_in_a_row(functions, device) for functions in (forward, both))
            as_called = dict(zip(as_called, times, strict=True))
        forward, both = ([as_graph(function) for function in functions] for functions in (forward, both))
    seconds = median_time(forward, device)
    return {
        "forward_ms": 1e3 * seconds,
        "forward_backward_ms": 1e3 * median_time(both, device),
        **as_called,
        "floor_ms": 1e3 * floor,
        "share_of_floor": floor / seconds,
        "peak_gib": peak,
    }


def _forward_backward(run: Callable[[Given], Tensor], given: Given) -> Callable[[], tuple[Tensor, ...]]:
    leaves, learned = _leaves(given)

    def both() -> tuple[Tensor, ...]:
        output = run(leaves)
        return torch.autograd.grad(output, list(learned.values()), torch.ones_like(output))

    return both


def _leaves(given: Given) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Operands of their own, and those of them that are differentiated."""
    leaves = {name: t.detach().requires_grad_(t.is_floating_point()) for name, t in given.items()}
    return leaves, {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
