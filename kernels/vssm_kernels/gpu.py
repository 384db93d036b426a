"""Triton on a GPU: whether kernels can run, on this machine and on given inputs, and how they are launched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
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
    plan: Callable[..., Any],
    plan_backward: Callable[..., Any],
    why_not: Callable[[Any], str | None],
    saves: Callable[[Any], Any] = lambda args: None,
) -> Backend:
    """A backend whose kernels run on the GPU that its inputs lie on, from its two plans: see `Backend`."""

    def forward(args: Any, save: bool) -> Any:
        return plan(args, save)(args)

    def backward(args: Any, gradient: Tensor) -> Any:
        return plan_backward(args, gradient)(args, gradient)

    return Backend("triton", forward, backward, why_not, saves, plan=plan, plan_backward=plan_backward)


class Launcher:
    """A Triton kernel with its grid and all arguments but tensors bound.

    Triton looks at every argument of every launch to find the compiled kernel, which takes longer than most kernels
    run. Here the first launch finds it, for later ones too: their tensors must have the same dtypes and alignments, and
    None must stand at the same places. They are on the GPU of the first launch's; it need not be the current one.
    Interpreted kernels, and launches that a profiler of Triton's watches, go Triton's own way.

    Args:
        kernel: of Triton; its tensors are its first parameters.
        grid: numbers of programs.
        others: the rest of the arguments, and the launch options, by name.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], **others: Any):
        self.kernel, self.grid, self.others = kernel, grid, others
        self.compiled: Any = None

    def __call__(self, *tensors: Tensor | None) -> None:
        compiled = self.compiled
        if compiled is None or _is_watched_by_triton() or _current_device() != self.device:
            self._launch_elsewhere(tensors)
            return
        stream = triton.runtime.driver.active.get_current_stream(self.device)
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        compiled.run(*self.size, stream, self.function, self.metadata, None, None, None, *pointers, *self.bound)

    def _launch_elsewhere(self, tensors: tuple[Tensor | None, ...]) -> None:
        """As Triton does, which launches on the current GPU."""
        device = tensors[0].device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            compiled = self.kernel[self.grid](*tensors, **self.others)
            if hasattr(compiled, "packed_metadata"):
                self.device, self.size = device.index, (*self.grid, 1, 1)[:3]
                self.bound = [self.others[name] for name in self.kernel.arg_names[len(tensors) :]]
                self.function, self.metadata = compiled.function, compiled.packed_metadata
                self.compiled = compiled


# torch.cuda.current_device without its look at whether CUDA is set up, which tensors on a GPU show.
_current_device = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)


def _is_watched_by_triton() -> bool:
    hook = triton.knobs.runtime.launch_enter_hook  # None, or in newer versions a chain
    return hook is not None and bool(getattr(hook, "calls", True))


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
