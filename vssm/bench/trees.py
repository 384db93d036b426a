"""The trees of maps and their scans at the shapes of GrootVL: checked against the reference, then timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.bench.timing import Ceilings, as_graph, median_time, peak_memory
from vssm_kernels import grid_tree, tree_scan, use_backend
from vssm_kernels.testing import TOLERANCE, relative_error


@dataclass(frozen=True)
class TreeCase:
    """Sizes of one map; `channels` are those of the scan."""

    name: str
    batch: int
    height: int
    width: int
    channels: int


TREE_CASES = {
    case.name: case
    for case in (
        *(TreeCase(f"grootvl_tiny_stage{i + 1}", 128, 56 >> i, 56 >> i, 160 << i) for i in range(4)),
        TreeCase("grootvl_dense", 2, 200, 320, 160),
    )
}


def benchmark_tree(
    case: TreeCase, device: torch.device, dtype: torch.dtype, ceilings: Ceilings, backends: list[str]
) -> list[dict[str, object]]:
    """Rows of results, one per backend: of the tree and its scan together, and `tree_ms` of the tree alone.

    Raises:
        AssertionError: a backend disagrees with the reference; nothing of it is timed then.
    """
    rows = []
    operands = [_operands(case, device, dtype, seed) for seed in range(2)]
    moved = sum(t.numel() * t.element_size() for t in operands[0].values())
    moved += 4 * operands[0]["delta"].numel()  # the states
    floor = ceilings.floor(moved, operands[0]["delta"].numel())
    for name in backends:
        check(case, name, device, dtype)
        tree = [lambda given=given, name=name: _tree(given, name) for given in operands]
        forward = [lambda given=given, name=name: _states(given, name) for given in operands]
        both = [_forward_backward(given, name) for given in operands]
        peak = peak_memory(both[0], device)
        if device.type == "cuda":  # a kernel may take less time than its launch
            tree, forward, both = ([as_graph(function) for function in each] for each in (tree, forward, both))
        seconds = median_time(forward, device)
        rows.append(
            {
                "case": case.name,
                "backend": name,
                "dtype": str(dtype).removeprefix("torch."),
                "batch": case.batch,
                "tokens": case.height * case.width,
                "directions": 1,
                "channels": case.channels,
                "state": 1,
                "forward_ms": 1e3 * seconds,
                "forward_backward_ms": 1e3 * median_time(both, device),
                "floor_ms": 1e3 * floor,
                "share_of_floor": floor / seconds,
                "peak_gib": peak,
                "tree_ms": 1e3 * median_time(tree, device),
            }
        )
    return rows


def check(case: TreeCase, backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """States and all gradients against the reference, along its own tree, on one image of few channels."""
    case = replace(case, batch=1, channels=32, height=min(case.height, 56), width=min(case.width, 56))
    given = _operands(case, device, dtype, seed=0)
    found = []
    for name in ("reference", backend):
        leaves = {key: tensor.detach().requires_grad_() for key, tensor in given.items()}
        output = _states(leaves, name)
        gradients = torch.autograd.grad(output.square().mean(), list(leaves.values()))
        found.append([output.detach(), *gradients])
    for name, expected, actual in zip(("output", *given), *found, strict=True):
        error = relative_error(actual, expected)
        assert error <= 2 * TOLERANCE[dtype], f"{case.name}, {backend}: {name} is off by {error:.1e}; not timed"


def _operands(case: TreeCase, device: torch.device, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """A map as smooth as features are, step sizes about 0.05, and rates about 1, as in a trained model."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    height, width = case.height, case.width
    coarse = normal(case.batch, case.channels, -(-height // 8) + 1, -(-width // 8) + 1)
    x = F.interpolate(coarse, (height, width), mode="bilinear") + 0.1 * normal(1, case.channels, height, width)
    rows = (case.batch, height * width)
    return {
        "x": x.permute(0, 2, 3, 1).to(dtype).contiguous(),
        "delta": (0.5 * normal(*rows, case.channels)).to(dtype),
        "A": -torch.exp(0.1 * normal(case.channels)),
        "B": normal(*rows).to(dtype),
        "delta_bias": 0.5 * normal(case.channels) - 3,
    }


def _tree(given: dict[str, Tensor], backend: str) -> Tensor:
    with use_backend(backend):
        return grid_tree(given["x"])


def _states(given: dict[str, Tensor], backend: str) -> Tensor:
    x, *others = given.values()
    with use_backend(backend):
        return tree_scan(x.flatten(1, 2), *others, tree=grid_tree(x))


def _forward_backward(given: dict[str, Tensor], backend: str) -> Callable[[], tuple[Tensor, ...]]:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}

    def both() -> tuple[Tensor, ...]:
        output = _states(leaves, backend)
        return torch.autograd.grad(output, list(leaves.values()), torch.ones_like(output))

    return both
