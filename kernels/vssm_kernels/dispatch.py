"""How ops are known to torch, and which implementation runs: a list of backends, each able to say why it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

_forced: ContextVar[str | None] = ContextVar("vssm_forced_backend", default=None)


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    forward(arguments) returns the output; backward(arguments, gradient) returns the gradients of the tensors that
    `arguments` names, in their order, or is None where autograd differentiates `forward` itself.
    why_not(arguments) is None where the backend can run, else one sentence.
    why_not(None) answers for the machine alone, without inputs.
    keeps(arguments) is how many float32 numbers the forward keeps for the backward, where both take a tensor of them.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any] | None
    why_not: Callable[[Any], str | None]
    keeps: Callable[[Any], int] = lambda arguments: 0


class BackendRegistry:
    """The backends of one op, fastest first."""

    def __init__(self, op: str, backends: list[Backend]):
        self.op = op
        self.backends = backends

    def choose(self, arguments: Any) -> Backend:
        """The first backend that accepts `arguments`, or the one forced by `use_backend` where the op has it."""
        forced = _forced.get()
        if forced is not None and all(backend.name != forced for backend in self.backends):
            forced = None
        refusals = []
        for backend in self.backends:
            if forced is not None and backend.name != forced:
                continue
            reason = backend.why_not(arguments)
            if reason is None:
                return backend
            refusals.append(f"  {backend.name}: {reason}")
        raise RuntimeError(f"no backend of {self.op} can run these inputs:\n" + "\n".join(refusals))


def operator(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function of tensors an operator of torch, "namespace::name", for every device.

    Like torch.library.custom_op, without what that does after every call: looking for outputs that share memory with
    inputs costs 0.1 ms for ten tensors, more than a kernel's launch.
    """

    def define(function: Callable[..., Any]) -> Callable[..., Any]:
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(name, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(name, "default", function)
        namespace, short = name.split("::")
        return getattr(getattr(torch.ops, namespace), short).default

    return define


def needs_gradient(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd may ask for the gradient of one of them, so that an op has to keep what its backward takes."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def why_not_cpu(tensor: torch.Tensor) -> str | None:
    """What a backend for the CPU says of a tensor that is elsewhere."""
    return None if tensor.device.type == "cpu" else f"runs on the CPU; the inputs are on {tensor.device}"


def why_not_plain(*tensors: torch.Tensor | None) -> str | None:
    """What a backend that is no operator of torch says: it takes memory as it is, and nothing may look on."""
    # Fake and distributed tensors, and what else wraps memory, are torch's to follow.
    present = [tensor for tensor in tensors if tensor is not None]
    if any(type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.is_meta for tensor in present):
        return "reads plain tensors only"
    return "a trace would not see it" if torch.jit.is_tracing() else None


_registries: list[BackendRegistry] = []


def register(op: str, backends: list[Backend]) -> BackendRegistry:
    """Make an op's backends, fastest first, known to `use_backend` and to the report."""
    registry = BackendRegistry(op, backends)
    _registries.append(registry)
    return registry


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one backend for every op called inside the block that has it; an op that cannot use it says why.

    >>> import torch, vssm_kernels
    >>> u, delta = torch.randn(1, 5, 2), torch.randn(1, 5, 1, 2)
    >>> A, B, C = -torch.ones(1, 2, 3), torch.randn(1, 5, 1, 3), torch.randn(1, 5, 1, 3)
    >>> with vssm_kernels.use_backend("reference"):
    ...     vssm_kernels.selective_scan(u, delta, A, B, C).shape
    torch.Size([1, 5, 1, 2])
    """
    known = {backend.name for registry in _registries for backend in registry.backends}
    if name not in known:
        raise ValueError(f"unknown kernel backend {name!r}; known: {', '.join(sorted(known))}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def backend_report() -> list[tuple[str, str, str]]:
    """(op, backend, "available" or the reason why not on this machine) for every backend."""
    return [
        (registry.op, backend.name, backend.why_not(None) or "available")
        for registry in _registries
        for backend in registry.backends
    ]
