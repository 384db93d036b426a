"""Operators on maps at the shapes of real models: checked against the reference, then timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from vssm.bench.operators import check_backend, time_operator
from vssm.bench.timing import Ceilings
from vssm_kernels import deformable_sampling, state_fusion, use_backend
from vssm_kernels.testing import TOLERANCE


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
                **time_operator(partial(_forward, case, backend=name), operands, device, floor),
            }
        )
    return rows


def check(case: MapCase, backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Output and all gradients against the reference, on one image."""
    case = replace(case, batch=1)
    given = case.operands(device, dtype, seed=0)
    check_backend(case.name, backend, partial(_forward, case), given, 2 * TOLERANCE[dtype])


def _forward(case: MapCase, given: Mapping[str, Tensor], backend: str) -> Tensor:
    with use_backend(backend):
        return case.run(given)
