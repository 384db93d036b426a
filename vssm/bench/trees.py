"""The trees of maps and their scans at the shapes of GrootVL: checked against the reference, then timed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.bench.operators import Given, check_backend, time_operator
from vssm.bench.timing import Ceilings, as_graph, median_time
from vssm_kernels import grid_tree, tree_scan, use_backend
from vssm_kernels.testing import TOLERANCE


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
        tree = [partial(_tree, given, name) for given in operands]
        if device.type == "cuda":
            tree = [as_graph(function) for function in tree]
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
                **time_operator(partial(_states, backend=name), operands, device, floor),
                "tree_ms": 1e3 * median_time(tree, device),
            }
        )
    return rows


def check(case: TreeCase, backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """States and all gradients against the reference, along its own tree, on one image of few channels."""
    case = replace(case, batch=1, channels=32, height=min(case.height, 56), width=min(case.width, 56))
    given = _operands(case, device, dtype, seed=0)
    check_backend(case.name, backend, _states, given, 2 * TOLERANCE[dtype])


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


def _tree(given: Given, backend: str) -> Tensor:
    with use_backend(backend):
        return grid_tree(given["x"])


def _states(given: Given, backend: str) -> Tensor:
    x, *others = given.values()
    with use_backend(backend):
        return tree_scan(x.flatten(1, 2), *others, tree=grid_tree(x))
