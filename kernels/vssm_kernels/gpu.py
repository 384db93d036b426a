"""Whether Triton kernels can run, on this machine and on given inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vssm_kernels.dispatch import Backend, why_not_plain

try:
    import triton
except ImportError as error:  # optional: a CPU installation of torch comes without it
    _MISSING, _INTERPRETED = str(error), False
else:
    # Set before the first import, TRITON_INTERPRET=1 makes kernels run anywhere, slowly; tests use it.
    _MISSING, _INTERPRETED = None, bool(triton.knobs.runtime.interpret)


def triton_backend(
    forward: Callable[..., Any],
    backward: Callable[..., Any] | None,
    why_not: Callable[[Any], str | None],
    **more: Callable[[Any], int],
) -> Backend:
    """A backend whose kernels run on the GPU that the arguments lie on; `more` of what it says beyond `why_not`."""
    there = None if backward is None else on_their_gpu(backward)
    return Backend("triton", on_their_gpu(forward), there, why_not, **more)


def on_their_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """function(something with a device, ...) with that GPU made the current one, which Triton launches kernels on."""

    def run(args: Any, *more: Any) -> Any:
        # No GPU where kernels are interpreted. Most often it is the current one, and making it that takes 0.02 ms.
        if args.device.type != "cuda" or args.device.index == torch.cuda.current_device():
            return function(args, *more)
        with torch.cuda.device(args.device):
            return function(args, *more)

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


def why_not_by_hand(*tensors: Tensor | None) -> str | None:
    """The same for kernels that are launched from Python and are no operators of torch: nothing may look on."""
    return why_not_plain(*tensors) or why_no_triton(*tensors)
