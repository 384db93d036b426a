"""Triton on a GPU: whether kernels can run, on this machine and on given inputs, and how they are launched."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
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
        with on_gpu((more if isinstance(more, Tensor) else args).device):
            return function(args, more)

    return run


def on_gpu(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a GPU the current one, on which Triton launches kernels."""
    # No GPU where kernels are interpreted. Most often it is the current one, and making it that takes 0.02 ms.
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return _NOTHING
    return torch.cuda.device(device)


_NOTHING = nullcontext()


class _Prepared:
    """A compiled kernel with all its arguments but tensors bound; a launch looks at none of them."""

    def __init__(self, compiled: Any, grid: tuple[int, ...], names: list[str], arguments: Mapping[str, Any]):
        self.compiled, self.grid = compiled, (*grid, 1, 1)[:3]
        self.arguments = [arguments.get(name) for name in names]
        self.places = [i for i, value in enumerate(self.arguments) if isinstance(value, Tensor)]
        self.tensors = [names[i] for i in self.places]
        self.device = triton.runtime.driver.active.get_current_device()

    def launch(self, tensors: Mapping[str, Tensor | None]) -> None:
        arguments = self.arguments[:]
        for place, name in zip(self.places, self.tensors, strict=True):
            arguments[place] = tensors[name].data_ptr()
        compiled, stream = self.compiled, triton.runtime.driver.active.get_current_stream(self.device)
        compiled.run(*self.grid, stream, compiled.function, compiled.packed_metadata, None, None, None, *arguments)


_prepared: dict[Hashable, _Prepared] = {}
_PREPARED_MAX = 4096


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    key: Hashable,
    tensors: Mapping[str, Tensor | None],
    others: Callable[[], Mapping[str, Any]],
) -> None:
    """Launch a Triton kernel.

    Triton looks at every argument of every launch to find the compiled kernel, which takes longer than most kernels
    run. Here that is done once for each key: a launch with a known one takes a fourth of the time. Interpreted kernels,
    and launches that a profiler of Triton's watches, go Triton's own way.

    Args:
        kernel: of Triton.
        grid: numbers of programs.
        key: whatever `others` depends on, `signature(*tensors)` among it.
        tensors: by the kernel's names; None where a kernel takes that.
        others: makes the rest of the arguments, and the launch options.
    """
    key = (id(kernel), grid, key)
    known = _prepared.get(key)
    if known is not None and not _is_watched_by_triton():
        known.launch(tensors)
        return
    arguments = {**tensors, **others()}
    compiled = kernel[grid](**arguments)
    if hasattr(compiled, "packed_metadata"):
        if len(_prepared) >= _PREPARED_MAX:
            _prepared.clear()
        _prepared[key] = _Prepared(compiled, grid, kernel.arg_names, arguments)


def signature(*tensors: Tensor | None) -> tuple[Hashable, ...]:
    """All that the launch of a kernel, and the choice of it, depends on in its tensors."""
    found: list[Hashable] = [None if t is None else (t.shape, t.stride(), t.dtype, t.data_ptr() & 63) for t in tensors]
    found.append(tensors[0].get_device())
    return tuple(found)


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
