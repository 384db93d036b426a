"""Shared by tests and benchmarks: realistic inputs, and one measure of agreement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vssm_kernels.dispatch import Backend

# Largest relative root-mean-square error of a fast path against the reference. float32: summation order and the
# hardware's exp2 (2 ulp) over some hundred steps; half precisions: rounding of inputs and outputs, 2^-9 and 2^-12.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Root-mean-square of the difference over that of `expected`; infinite where `actual` is not finite."""
    actual, expected = actual.double(), expected.double()
    if not torch.isfinite(actual).all():
        return float("inf")
    scale = expected.norm().item()
    return (actual - expected).norm().item() / (scale if scale > 0 else 1.0)


def assert_close(actual: Tensor, expected: Tensor, name: str = "tensor", tolerance: float | None = None) -> None:
    """Fail unless shapes agree and the relative error is within the tolerance of actual's dtype."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    tolerance = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{name}: relative error {error:.2e} above {tolerance:.0e} ({actual.dtype})"


def make_inputs(
    batch: int = 2,
    tokens: int = 63,
    directions: int = 2,
    channels: int = 24,
    state: int = 4,
    *,
    shared_input: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Arguments of `selective_scan` with the statistics of a trained model: delta' about 0.05, A from -1 to -state."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    u_shape = (batch, tokens, channels) if shared_input else (batch, tokens, directions, channels)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rates = torch.arange(1, state + 1, dtype=torch.float32, device="cpu").expand(directions, channels, state)
    inputs = {
        "u": normal(*u_shape).to(dtype),
        "delta": (0.5 * normal(batch, tokens, directions, channels)).to(dtype),
        "A": (-rates * torch.exp(0.1 * normal(directions, channels, state))).to(wide),
        "B": normal(batch, tokens, directions, state).to(dtype),
        "C": normal(batch, tokens, directions, state).to(dtype),
        "D": (1 + 0.1 * normal(directions, channels)).to(wide),
        "delta_bias": (-3 + 0.5 * normal(directions, channels)).to(wide),
    }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def run_backend(
    backend: Backend, args: Any, gradient: Tensor, *, save: bool = True
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """A backend's output and the gradients of `args.tensors()`, with what its forward saves or, else, without."""
    with torch.no_grad():
        output, saved = backend.forward(args, save)
        return output, backend.backward(args.for_backward(saved), gradient)
