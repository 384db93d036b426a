"""State-space duality beside attention of the same width: checked against the recurrence, then timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.bench.operators import Given, check_backend, time_operator
from vssm.bench.timing import Ceilings
from vssm.nn import OrderTable
from vssm.scan import bidirectional
from vssm_kernels import ssd, use_backend
from vssm_kernels.testing import TOLERANCE


@dataclass(frozen=True)
class DualityCase:
    """Sizes of one pass; two directions are one and its reverse, shifted and summed, as Hydra's are."""

    name: str
    batch: int
    tokens: int
    directions: int = 1
    heads: int = 6
    channels: int = 64  # of a head
    state: int = 64


_SIZES = ((128, 196), (128, 784), (16, 4096), (4, 16384))
DUALITY_CASES = {
    case.name: case
    for directions, name in ((1, "ssd"), (2, "quasiseparable"))
    for case in (DualityCase(f"{name}_{tokens}", batch, tokens, directions) for batch, tokens in _SIZES)
}


def benchmark_duality(
    case: DualityCase, device: torch.device, dtype: torch.dtype, ceilings: Ceilings, backends: list[str]
) -> list[dict[str, object]]:
    """Rows of results, one per backend and one of torch's attention, of as many heads and channels.

    Raises:
        AssertionError: a backend disagrees with the reference; nothing of it is timed then.
    """
    rows = []
    of_tokens = [_operands(case, device, dtype, seed) for seed in range(2)]
    of_attention = [_attention_operands(case, device, dtype) for _ in range(2)]
    runs: dict[str, tuple[list[dict[str, Tensor]], Callable[..., Tensor]]] = {
        name: (of_tokens, partial(_run, case, backend=name)) for name in backends
    }
    runs["attention"] = of_attention, lambda given: F.scaled_dot_product_attention(**given)
    for name, (operands, run) in runs.items():
        if name != "attention":
            check(case, name, device, dtype)
        moved = sum(t.numel() * t.element_size() for t in operands[0].values())
        moved += case.batch * case.tokens * case.heads * case.channels * dtype.itemsize
        rows.append(
            {
                "case": case.name,
                "backend": name,
                "dtype": str(dtype).removeprefix("torch."),
                "batch": case.batch,
                "tokens": case.tokens,
                "directions": case.directions,
                "channels": case.heads * case.channels,
                "state": case.state,
                **time_operator(run, operands, device, ceilings.floor(moved, 0)),
            }
        )
    return rows


def check(case: DualityCase, backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Output and all gradients against the recurrence, on a small batch and few heads of at most 256 tokens."""
    case = replace(case, batch=1, heads=2, tokens=min(case.tokens, 256))
    given = _operands(case, device, dtype, seed=0)

    def weighted(output: Tensor) -> Tensor:
        weights = torch.linspace(-1, 1, output.numel(), device=device, dtype=dtype).view_as(output)
        return (output * weights).sum()

    check_backend(case.name, backend, partial(_run, case), given, 5 * TOLERANCE[dtype], weighted)


def _operands(case: DualityCase, device: torch.device, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """Step sizes about 0.05 and rates of 1 to 16, as in a trained model."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    rows, of_heads = (case.batch, case.tokens), (case.directions, case.heads)
    return {
        "u": normal(*rows, case.heads, case.channels).to(dtype),
        "delta": normal(*rows, *of_heads).to(dtype),
        "A": -1 - 15 * torch.rand(of_heads, generator=generator, device=device),
        "B": normal(*rows, case.directions, 1, case.state).to(dtype),
        "C": normal(*rows, case.directions, 1, case.state).to(dtype),
        "delta_bias": normal(*of_heads) - 3,
    }


def _attention_operands(case: DualityCase, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """As one projection makes them."""
    qkv = torch.randn(case.batch, case.tokens, 3, case.heads, case.channels, device=device, dtype=dtype)
    return dict(zip(("query", "key", "value"), qkv.permute(2, 0, 3, 1, 4), strict=True))


def _run(case: DualityCase, given: Given, backend: str) -> Tensor:
    order = OrderTable(bidirectional)(1, case.tokens, given["u"].device) if case.directions == 2 else None
    with use_backend(backend):
        return ssd(**given, order=order, shift=case.directions == 2, merge=True)
