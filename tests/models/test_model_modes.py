"""Torch's ambient modes change no number of a model that was built outside of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import timm
import torch
from families import CLASSES, shallow
from torch import Tensor, nn


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    """Memory that is not written holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def logits_and_gradients(model: nn.Module) -> list[Tensor]:
    x = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float32, device="cpu")
    logits = model(x)
    return [logits, *torch.autograd.grad(logits.logsumexp(1).sum(), list(model.parameters()))]


MODES: dict[str, Callable[[], AbstractContextManager]] = {
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default float64": lambda: default_dtype(torch.float64),
    "device meta": lambda: torch.device("meta"),
    "deterministic": deterministic,
}


@pytest.mark.parametrize("kind", [*map(shallow, CLASSES)], ids=lambda kind: kind[0])
def test_modes_change_nothing(kind: tuple[str, dict]) -> None:
    torch.manual_seed(0)
    model = timm.create_model(kind[0], **{"num_classes": 10, **kind[1]}).eval()
    expected = logits_and_gradients(model)
    for name, mode in MODES.items():
        with mode():
            found = logits_and_gradients(model)
        for one, want in zip(found, expected, strict=True):
            assert one.dtype == want.dtype and one.device == want.device, name
            torch.testing.assert_close(one, want, msg=lambda told, name=name: f"{name}: {told}")


@pytest.mark.parametrize("kind", [*map(shallow, CLASSES)], ids=lambda kind: kind[0])
def test_autocast_leaves_float64_alone(kind: tuple[str, dict]) -> None:
    """As it does with torch's own layers."""
    torch.manual_seed(0)
    model = timm.create_model(kind[0], **{"num_classes": 10, **kind[1]}).eval().double()
    x = torch.randn(2, 3, 48, 64, dtype=torch.float64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(x)
    with torch.no_grad():
        torch.testing.assert_close(found, model(x))
