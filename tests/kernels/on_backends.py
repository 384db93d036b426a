"""Where the tests of a backend run, and when they are skipped."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vssm_kernels import Backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def device_of(backend: Backend) -> str:
    """Where a backend's tests put their tensors; without a GPU Triton's interpreter reads those of the CPU."""
    return DEVICE if backend.name == "triton" else "cpu"


def require(backend: Backend, args: Any) -> None:
    """Skip where Triton is not installed; every other refusal of these arguments is a failure."""
    if backend.name == "triton":
        pytest.importorskip("triton", reason="Triton is optional")
    assert backend.why_not(args) is None
