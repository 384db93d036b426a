"""Which implementation of an op runs: a list of backends, each able to say why it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import forward_ad

PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)
forced: ContextVar[str | None] = ContextVar("vssm_forced_backend", default=None)  # by `use_backend`


@dataclass(frozen=True, eq=False)
class Backend:
    """One implementation of an op.

    forward(arguments, save) returns the output and, with `save`, what the forward saves for the backward, or None.
    backward(arguments, gradient) returns the gradients of `arguments.tensors()`, None where a tensor is None. It
    receives what `arguments.for_backward(saved)` returns.
    why_not(arguments) is None where the backend can run, else one sentence.
    why_not(None) answers for the machine alone, without inputs.
    saves(arguments) is the shape and dtype of what the forward saves, or None.
    is_recorded(arguments) says whether the forward is made of torch's own operations, for autograd to record.

    Where looking at the arguments takes as long as the kernels, a backend does that once for all arguments of a kind:
    plan(arguments, save) returns a function of arguments that are like these in all but the numbers in their tensors,
    and does what forward does; plan_backward(arguments, gradient) returns a function of both. Neither holds a tensor.
    """

    name: str
    forward: Callable[[Any, bool], tuple[torch.Tensor, torch.Tensor | None]]
    backward: Callable[[Any, torch.Tensor], Sequence[torch.Tensor | None]]
    why_not: Callable[[Any], str | None]
    saves: Callable[[Any], tuple[tuple[int, ...], torch.dtype] | None] = lambda arguments: None
    is_recorded: Callable[[Any], bool] = lambda arguments: False
    plan: Callable[[Any, bool], Callable[[Any], tuple[torch.Tensor, torch.Tensor | None]]] | None = None
    plan_backward: Callable[[Any, torch.Tensor], Callable[[Any, torch.Tensor], Any]] | None = None

    def planned(self, arguments: Any, save: bool) -> Callable[[Any], tuple[torch.Tensor, torch.Tensor | None]]:
        """The forward of arguments like these."""
        return (lambda like: self.forward(like, save)) if self.plan is None else self.plan(arguments, save)

    def planned_backward(self, arguments: Any, gradient: torch.Tensor) -> Callable[[Any, torch.Tensor], Any]:
        """The backward of arguments and a gradient like these."""
        return self.backward if self.plan_backward is None else self.plan_backward(arguments, gradient)


def reference_backend(forward: Callable[..., Any], backward: Callable[..., Any]) -> Backend:
    """The backend in plain torch, which takes everything."""
    return Backend("reference", forward, backward, why_not=lambda args: None, is_recorded=lambda args: True)


class BackendRegistry:
    """The backends of one op, fastest first."""

    def __init__(self, name: str, backends: Sequence[Backend]):
        self.name = name
        self.backends = list(backends)

    def choose(self, arguments: Any) -> Backend:
        """The first backend that accepts `arguments`, or the one forced by `use_backend` where the op has it.

        Raises RuntimeError with every backend's reason where none accepts.
        """
        name = forced.get()
        candidates = [backend for backend in self.backends if backend.name == name] if name else self.backends
        refusals = []
        for backend in candidates or self.backends:
            reason = backend.why_not(arguments)
            if reason is None:
                return backend
            refusals.append(f"  {backend.name}: {reason}")
        raise RuntimeError(f"no backend of {self.name} can run these inputs:\n" + "\n".join(refusals))

    def forget(self) -> None:
        """Choose anew for arguments of kinds that are known."""


registries: list[BackendRegistry] = []  # what `use_backend` and the report know


def forget() -> None:
    """Let every op choose its backends anew, where what this depends on besides the arguments has changed."""
    for registry in registries:
        registry.forget()


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has memory of its own that can be read by address: it is not fake, wrapped, on meta, or negated
    when it is read."""
    return type(tensor) in PLAIN_TENSORS and not tensor.is_meta and not tensor.is_neg()


def is_watched() -> bool:
    """Whether a compiler, a trace or a mode has to see every operation of torch."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or torch._C._is_tracing()


def is_transformed() -> bool:
    """Whether torch's own operations alone know what to do: under transforms of torch.func and in forward mode."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def runs_eagerly() -> bool:
    """Whether operations of torch run at once and nothing sees them but autograd's backwards."""
    return not (is_watched() or is_transformed())


def why_not_cpu(*tensors: torch.Tensor | None) -> str | None:
    """What a backend for the CPU that computes in float32 says of tensors."""
    for tensor in tensors:
        if tensor is not None:
            if not tensor.is_cpu:
                return f"runs on the CPU; the inputs are on {tensor.device}"
            if tensor.dtype == torch.float64:
                return "computes in float32; float64 inputs ask for more"
    return None


def why_not_beside(kernels: Backend) -> Callable[[Any], str | None]:
    """`why_not` of a backend out of torch's operations, which goes before `kernels` of Triton: it takes what these do
    not, and what is on a CPU, where Triton's interpreter may be on."""

    def why_not(arguments: Any) -> str | None:
        if arguments is not None and why_not_cpu(*arguments.tensors()) and kernels.why_not(arguments) is None:
            return "is for inputs that the kernels of triton do not take"
        return None

    return why_not


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one backend for every op called inside the block that has it; an op that cannot use it says why.

    A backward runs in the backend of its forward. With "reference", autograd records plain operations of torch.

    >>> import torch, vssm_kernels
    >>> u, delta = torch.randn(1, 5, 2), torch.randn(1, 5, 1, 2)
    >>> A, B, C = -torch.ones(1, 2, 3), torch.randn(1, 5, 1, 3), torch.randn(1, 5, 1, 3)
    >>> with vssm_kernels.use_backend("reference"):
    ...     vssm_kernels.selective_scan(u, delta, A, B, C).shape
    torch.Size([1, 5, 1, 2])
    """
    known = {backend.name for registry in registries for backend in registry.backends}
    if name not in known:
        raise ValueError(f"unknown kernel backend {name!r}; known: {', '.join(sorted(known))}")
    token = forced.set(name)
    try:
        yield
    finally:
        forced.reset(token)


def backend_report() -> list[tuple[str, str, str]]:
    """(op, backend, "available" or the reason why not on this machine) for every backend."""
    return [
        (registry.name, backend.name, backend.why_not(None) or "available")
        for registry in registries
        for backend in registry.backends
    ]
