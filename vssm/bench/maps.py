"""Operators on maps at the shapes of real models: checked against the reference, then timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vssm.bench.timing import Ceilings, as_graph, median_time, peak_memory
from vssm_kernels import deformable_sampling, state_fusion, use_backend
from vssm_kernels.testing import TOLERANCE, relative_error


@dataclass(frozen=True)
class MapCase:
    """Sizes of one map: of deformable sampling, or without groups of the fusion of states, which are float32."""

    name: str
    batch: int
    height: int
    width: int
    channels: int
    groups: int = 0

    def run(self, given: Mapping[str, Tensor]) -> Tensor:
        return deformable_sampling(**given, groups=self.groups) if self.groups else state_fusion(**given)

    def operands(self, device: torch.device, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
        """What the operator is given: offsets of about a position, as in a trained model."""
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

        grid = self.batch, self.height, self.width
        if self.groups:
            return {"x": normal(*grid, self.channels), "predicted": normal(*grid, -(-27 * self.groups // 8) * 8)}
        wide = torch.promote_types(dtype, torch.float32)
        return {
            "states": normal(*grid, self.channels, dtype=wide),
            "weight": normal(3, self.channels, 3, 3, dtype=wide),
        }


MAP_CASES = {
    case.name: case
    for i in range(4)
    for case in (
        MapCase(f"hrvmamba_small_branch{i + 1}", 128, 56 >> i, 56 >> i, 64 << i, groups=2 << i),
        MapCase(f"spatialmamba_tiny_stage{i + 1}", 128, 56 >> i, 56 >> i, 128 << i),
    )
}


def benchmark_map(
    case: MapCase, device: torch.device, dtype: torch.dtype, ceilings: Ceilings, backends: list[str]
) -> list[dict[str, object]]:
    """Rows of results, one per backend.

    Raises:
        AssertionError: a backend disagrees with the reference; nothing of it is timed then.
    """
    rows = []
    operands = [case.operands(device, dtype, seed) for seed in range(2)]
    first = next(iter(operands[0].values()))  # the output is as large
    moved = sum(t.numel() * t.element_size() for t in (first, *operands[0].values()))
    floor = ceilings.floor(moved, 0)
    for name in backends:
        check(case, name, device, dtype)
        forward = [lambda given=given, name=name: _forward(case, given, name) for given in operands]
        both = [_forward_backward(case, given, name) for given in operands]
        peak = peak_memory(both[0], device)
        if device.type == "cuda":  # a kernel may take less time than its launch
            forward, both = ([as_graph(function) for function in each] for each in (forward, both))
        seconds = median_time(forward, device)
        rows.append(
            {
                "case": case.name,
                "backend": name,
                "dtype": str(first.dtype).removeprefix("torch."),
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
            }
        )
    return rows


def check(case: MapCase, backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Output and all gradients against the reference, on one image."""
    case = replace(case, batch=1)
    given = case.operands(device, dtype, seed=0)
    found = []
    for name in ("reference", backend):
        leaves = {key: tensor.detach().requires_grad_() for key, tensor in given.items()}
        output = _forward(case, leaves, name)
        gradients = torch.autograd.grad(output.float().square().mean(), list(leaves.values()))
        found.append([output.detach(), *gradients])
    for name, expected, actual in zip(("output", *given), *found, strict=True):
        error = relative_error(actual, expected)
        assert error <= 2 * TOLERANCE[dtype], f"{case.name}, {backend}: {name} is off by {error:.1e}; not timed"


def _forward(case: MapCase, given: Mapping[str, Tensor], backend: str) -> Tensor:
    with use_backend(backend):
        return case.run(given)


def _forward_backward(case: MapCase, given: Mapping[str, Tensor], backend: str) -> Callable[[], tuple[Tensor, ...]]:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}

    def both() -> tuple[Tensor, ...]:
        output = _forward(case, leaves, backend)
        return torch.autograd.grad(output, list(leaves.values()), torch.ones_like(output))

    return both
