"""Whether Triton kernels can run, on this machine and on given inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vssm_kernels.dispatch import Backend

try:
    import triton
except ImportError as error:  # optional: a CPU installation of torch comes without it
    _MISSING, _INTERPRETED = str(error), False
else:
    # Set before the first import, TRITON_INTERPRET=1 makes kernels run anywhere, slowly; tests use it.
    _MISSING, _INTERPRETED = None, bool(triton.knobs.runtime.interpret)


def triton_backend(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    why_not: Callable[[Any], str | None],
    saves: Callable[[Any], Any] = lambda args: None,
) -> Backend:
    """A backend whose kernels run on the GPU that its inputs lie on."""
    return Backend("triton", _on_the_gpu_of(forward), _on_the_gpu_of(backward), why_not, saves)


def _on_the_gpu_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """function(args, gradient or flag) on the GPU of the first tensor: Triton launches kernels on the current one."""

    def run(args: Any, more: Any) -> Any:
        device = (more if isinstance(more, Tensor) else args).device
        # No GPU where kernels are interpreted. Most often it is the current one, and making it that takes 0.02 ms.
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return function(args, more)
        with torch.cuda.device(device):
            return function(args, more)

    return run


def cdiv(size: int, block: int) -> int:
    """Blocks that cover a size. Triton's own also serves inside kernels, and takes 0.01 ms a call outside."""
    return -(-size // block)


def why_no_triton(*tensors: Tensor | None) -> str | None:
    """One sentence, or None where kernels can run; without tensors, for the machine alone."""
    if _MISSING is not None:
        return f"Triton cannot be imported ({_MISSING}); it comes with torch's GPU builds: pip install triton"
    present = [tensor for tensor in tensors if tensor is not None]
    elsewhere = next((tensor for tensor in present if not tensor.is_cuda), None)
    if not _INTERPRETED and (elsewhere is not None or not present):
        if not torch.cuda.is_available():
            return "needs a GPU (or TRITON_INTERPRET=1 set before the import, for tests); torch sees none"
        if elsewhere is not None:
            return f"runs on a GPU; the inputs are on {elsewhere.device}"
    if any(tensor.dtype == torch.float64 for tensor in present):
        return "computes in float32; float64 inputs ask for more"
    return None
