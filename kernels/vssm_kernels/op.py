"""One way for every op: what runs, how torch differentiates it, and what compilers see of it.

An op is called with its arguments, a NamedTuple that can check itself: first the tensors that can be differentiated, in
the order in which a backward returns their gradients, then everything else. It runs in one of three ways:

- Eagerly, on plain tensors: a backend's forward, and where a gradient may be asked for an autograd function around it.
  What is made of torch's own operations, as every reference is, autograd records operation by operation instead.
- Where a compiler, a trace, a mode or a tensor subclass has to see what happens: as the operator `vssm::<name>` of
  torch, or as the reference, where compilers fuse that well. In files for other programs (`standard_operations`) as
  operations of torch alone.
- Under transforms that only torch's own operations know, those of torch.func and forward-mode derivatives: the
  reference.

Second derivatives go through the reference in all three, which is slow and right.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vssm_kernels.dispatch import PLAIN_TENSORS, Backend, BackendRegistry, forced, is_transformed, registries
from vssm_kernels.kinds import Latest, kind_of
from vssm_kernels.orders import ScanTable, as_scan_table
from vssm_kernels.standard import wants_standard

_SCAN_TABLE = ["Tensor? {}", "SymInt? {}_tokens", "bool? {}_repeats", "bool? {}_covers"]
_SCHEMA = {
    "Tensor": ["Tensor {}"],
    "Tensor | None": ["Tensor? {}"],
    "ScanTable": _SCAN_TABLE,
    "ScanTable | None": _SCAN_TABLE,
    "bool": ["bool {}"],
    "int": ["SymInt {}"],
    "float": ["float {}"],
    "torch.dtype": ["ScalarType {}"],
    "torch.dtype | None": ["ScalarType? {}"],
}


class Op(BackendRegistry):
    """An op: its backends, and the ways to run one.

    Args:
        name: its operators are vssm::<name> and vssm::<name>_backward.
        arguments: a NamedTuple class. It has `check()`, which raises for what no backend takes, `tensors()`, the
            differentiable ones, `device`, `output_shape`, `output_dtype`, and `for_backward(saved)`: the arguments
            that a backward receives, given what the forward saved. In these the first tensor may be the sum over its
            directions, as one direction.
        backends: fastest first; the last one is the reference, which takes everything.
        fused: whether compilers make as good a kernel of the reference, so that they are given that; True where that
            holds for all arguments, and there are no operators then.
        standard: the op in operations that every runtime has and is fast at, for files that are run without vssm; None
            is the reference.
        saves_sums: whether forwards save the sums over the directions of the first tensor; else they save numbers
            that only their own backend reads.
    """

    def __init__(
        self,
        name: str,
        arguments: Any,
        backends: Sequence[Backend],
        *,
        fused: Callable[[Any], bool] | bool = False,
        saves_sums: bool = False,
        standard: Callable[[Any], Tensor] | None = None,
    ):
        super().__init__(name, backends)
        registries.append(self)
        self.arguments, self.saves_sums = arguments, saves_sums
        self.standard = standard or (lambda args: self.reference.forward(args, False)[0])
        self.fused = fused if callable(fused) else lambda args: fused
        self.kinds = kinds = {field: kind.__forward_arg__ for field, kind in arguments.__annotations__.items()}
        # By kinds of arguments: how an eager call runs, and a backend's forward and backward.
        self._runs: dict[Hashable, Callable[[Any], Tensor]] = Latest()
        self._forwards: dict[Hashable, Callable[[Any], tuple[Tensor, Tensor | None]]] = Latest()
        self._backwards: dict[Hashable, Callable[[Any, Tensor], Sequence[Tensor | None]]] = Latest()
        self.is_table = [kind.startswith("ScanTable") for kind in kinds.values()]
        self.tensor_count = sum(kind.startswith("Tensor") for kind in kinds.values())
        self.schema = ", ".join(part.format(field) for field, kind in kinds.items() for part in _SCHEMA[kind])
        if fused is not True:
            self.operator, self.backward_operator = _define_operators(self)

    @property
    def reference(self) -> Backend:
        return self.backends[-1]

    def __call__(self, args: Any) -> Tensor:
        """Run the op. Arguments are checked, and a backend chosen, unless some of their kind have been before."""
        if torch.compiler.is_dynamo_compiling():  # an export without dynamo runs in a mode
            return self._traced(args)
        if is_transformed():
            self.check(args)
            return _without_autocast(args.device, self.reference.forward, args, False)[0]
        if torch._C._len_torch_dispatch_stack() or torch._C._is_tracing():
            return self._traced(args)
        kind = kind_of(args)
        if kind is None:
            return self._traced(args)
        kind = torch.is_grad_enabled(), forced.get(), *kind
        try:
            run = self._runs.get(kind)
        except TypeError:  # an array or a list, which has no hash
            self.check(args)
            raise
        if run is None:
            run = self._runs[kind] = self._plan(args)
        return _without_autocast(args.device, run, args)

    def check(self, args: Any) -> None:
        """Raise, with got and expected, for arguments that the backends could not read."""
        for (name, kind), value in zip(self.kinds.items(), args, strict=True):
            found = type(value).__name__
            if kind.startswith("Tensor") and not isinstance(value, Tensor) and (value is not None or kind == "Tensor"):
                raise TypeError(f"{name} is a {found}; expected a tensor, such as torch.as_tensor makes of an array")
            if kind == "int" and isinstance(value, float):
                raise TypeError(f"{name} is {value}; expected a whole number")
        args.check()
        for name, tensor in zip(args._fields, args.tensors(), strict=False):
            if tensor is None:
                continue
            if not tensor.is_floating_point():
                raise TypeError(f"{name} is {tensor.dtype}; expected a floating-point tensor")
            if tensor.device != args.device:
                raise ValueError(
                    f"{name} is on {tensor.device} but {args._fields[0]} on {args.device}; move both to one device"
                )
        dtype = getattr(args, "dtype", None)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype is {dtype!r}; expected a floating-point one of torch's, such as torch.float32")

    def forget(self) -> None:
        for known in (self._runs, self._forwards, self._backwards):
            known.clear()

    def _plan(self, args: Any) -> Callable[[Any], Tensor]:
        """How arguments of this kind are run."""
        self.check(args)
        if args.device.type == "meta":
            return self._traced
        backend = self.choose(args)
        if backend.is_recorded(args):
            return lambda args: backend.forward(args, False)[0]
        save = needs_gradient(args.tensors())
        with torch.no_grad():  # autograd would save tensors for a plan, which a recomputation under checkpoint has not
            forward = backend.planned(args, save)
        if not save:
            return lambda args: forward(args)[0]
        backward = _Backward(self, backend)
        return lambda args: _Eager.apply(self, forward, backward, args, *args.tensors())[0]

    def run_forward(self, backend: Backend, args: Any, save: bool) -> tuple[Tensor, Tensor | None]:
        """The forward of a backend."""
        kind = kind_of(args)
        if kind is None:
            return backend.forward(args, save)
        run = self._forwards.get((backend, save, kind))
        if run is None:
            run = self._forwards[backend, save, kind] = backend.planned(args, save)
        return run(args)

    def run_backward(self, backend: Backend, args: Any, gradient: Tensor) -> Sequence[Tensor | None]:
        """The backward of a backend, given what `for_backward` returned."""
        kind = kind_of((*args, gradient))
        if kind is None:
            return backend.backward(args, gradient)
        run = self._backwards.get((backend, kind))
        if run is None:
            run = self._backwards[backend, kind] = backend.planned_backward(args, gradient)
        return run(args, gradient)

    def _traced(self, args: Any) -> Tensor:
        self.check(args)
        if wants_standard():
            order = getattr(args, "order", None)
            if order is not None and order.tokens:  # a constant: a trace that is run with other tokens fails here
                args = args._replace(**{args._fields[0]: args[0].unflatten(1, (order.tokens,))})
            return without_autocast(args.device, self.standard, args)
        if self.fused(args):
            return self.reference.forward(args, False)[0]
        # A trace is run in any mode, and torch checks it in one without gradients: a backward that finds nothing saved
        # computes it again.
        save = needs_gradient(args.tensors()) and not torch.jit.is_tracing()
        return self.operator(*self.flatten(args), save)[0]

    def flatten(self, args: Any) -> list[Any]:
        """The fields of the arguments as operators take them, a ScanTable as four."""
        flat = []
        for field, is_table in zip(args, self.is_table, strict=True):
            if not is_table:
                flat.append(field)
            elif field is None:
                flat += [None] * len(_SCAN_TABLE)
            else:
                flat += [field.table, field.tokens, field.repeats, field.covers]
        return flat

    def unflatten(self, flat: Sequence[Any]) -> Any:
        rest, fields = iter(flat), []
        for is_table in self.is_table:
            field = next(rest)
            if is_table:
                facts = [next(rest) for _ in _SCAN_TABLE[1:]]
                field = None if field is None else ScanTable(field, *facts)
            fields.append(field)
        return self.arguments(*fields)


def needs_gradient(tensors: Sequence[Tensor | None]) -> bool:
    """Whether autograd may ask for the gradient of one of them, so that an op must save what its backward takes."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def without_autocast(device: torch.device, function: Callable[..., Any], *args: Any) -> Any:
    """function(*args) with autocast off: kernels choose their dtypes themselves, and it would round the matrix products
    among them.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     without_autocast(torch.device("cpu"), torch.mm, torch.ones(2, 3), torch.ones(3, 4)).dtype
    torch.float32
    """
    if torch.compiler.is_compiling():
        with torch.autocast(device.type, enabled=False):
            return function(*args)
    return _without_autocast(device, function, *args)


def _without_autocast(device: torch.device, function: Callable[..., Any], *args: Any) -> Any:
    """The same where no compiler looks on: torch's context manager takes ten times as many calls."""
    if not torch._C._is_any_autocast_enabled() or device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return function(*args)
    torch.set_autocast_enabled(device.type, False)
    try:
        return function(*args)
    finally:
        torch.set_autocast_enabled(device.type, True)


class _Backward:
    """A backend's backward for what forwards of one kind have saved, which is of one kind too: only the gradient's is
    looked at."""

    def __init__(self, op: Op, backend: Backend):
        self.op, self.backend = op, backend
        self.known: dict[Hashable, Callable[[Any, Tensor], Sequence[Tensor | None]]] = {}

    def __call__(self, args: Any, gradient: Tensor) -> Sequence[Tensor | None]:
        if type(gradient) not in PLAIN_TENSORS:
            return self.op.run_backward(self.backend, args, gradient)
        kind = gradient.stride(), gradient.dtype, gradient.data_ptr() & 63
        run = self.known.get(kind)
        if run is None:
            run = self.known[kind] = self.backend.planned_backward(args, gradient)
        return run(args, gradient)


class _Eager(torch.autograd.Function):
    """An op on plain tensors. Returns the output and what is saved: second derivatives pass through saved sums."""

    @staticmethod
    def forward(ctx, op, forward, backward, args, *tensors):  # the tensors are those of args, for autograd to see
        output, saved = forward(args)
        # Hooks on saved tensors may return others of another kind.
        hooked = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        ctx.run_backward = partial(op.run_backward, backward.backend) if hooked else backward
        _save(ctx, op, args, saved)
        return output, saved

    @staticmethod
    def backward(ctx, gradient, dsaved):
        if gradient is not None and not torch._C._has_storage(gradient):
            ctx.run_backward = ctx.op.reference.backward  # many gradients at once, as of a vectorized jacobian
        return None, None, None, None, *_gradients(ctx, gradient, dsaved)


def _save(ctx: Any, op: Op, args: Any, saved: Tensor | None) -> None:
    """Put what the backward needs into an autograd context."""
    ctx.op, ctx.shape, ctx.dtype = op, args[0].shape, args[0].dtype
    args = args.for_backward(saved)
    ctx.save_for_backward(*args[: op.tensor_count])
    ctx.others = args[op.tensor_count :]
    if saved is not None and not op.saves_sums:
        ctx.mark_non_differentiable(saved)
    ctx.set_materialize_grads(False)  # no zeros for what is saved


def _gradients(ctx: Any, gradient: Tensor | None, dsaved: Tensor | None) -> list[Tensor | None]:
    """The gradients of the differentiable arguments; with `create_graph` by the reference, recorded by autograd."""
    # Once: under activation checkpointing a second look at saved_tensors would recompute.
    args = ctx.op.arguments(*ctx.saved_tensors, *ctx.others)
    if gradient is None:
        gradients = [None] * len(args.tensors())
    else:
        backward = ctx.op.reference.backward if torch.is_grad_enabled() else ctx.run_backward
        gradients = list(_without_autocast(gradient.device, backward, args, gradient.resolve_neg()))
    if dsaved is not None:
        gradients[0] = dsaved if gradients[0] is None else gradients[0] + dsaved
    if gradients[0] is not None:
        gradients[0] = gradients[0].to(ctx.dtype)
        if gradients[0].shape != ctx.shape:  # every direction has the gradient of their sum
            gradients[0] = gradients[0].expand(ctx.shape)
    return gradients


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if it is a part of another that begins at an address that compiled code does not expect."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _define_operators(op: Op) -> tuple[Any, Any]:
    """The operators of torch for all devices, of the forward and of the backward, as compilers see them.

    Like torch.library.custom_op, without what that does after every call: looking for outputs that share memory with
    inputs costs 0.1 ms for ten tensors, more than a kernel's launch.
    """

    def run(gradient: Tensor | None, flat: Sequence[Any], save: bool) -> Any:
        args = op.unflatten(flat)
        order = getattr(args, "order", None)
        if order is not None:  # a compiler could not read its table, or a trace is run with another number of tokens
            order = order.table if order.tokens is None else order
            args = args._replace(order=as_scan_table(order, args.directions, args.tokens, args.device))
        backend = op.choose(args)
        if gradient is None:
            return _without_autocast(args.device, op.run_forward, backend, args, save)
        return _without_autocast(args.device, op.run_backward, backend, args, gradient.expand(args.output_shape))

    def forward(*flat):
        output, saved = run(None, flat[:-1], flat[-1])
        return output, output.new_empty(0) if saved is None else saved

    def fake_forward(*flat):
        args, first = op.unflatten(flat[:-1]), flat[0]
        output = first.new_empty(args.output_shape, dtype=args.output_dtype)
        shape_and_dtype = op.choose(args).saves(args) if flat[-1] else None
        if shape_and_dtype is None:
            return output, output.new_empty(0)
        return output, first.new_empty(shape_and_dtype[0], dtype=shape_and_dtype[1])

    def backward(gradient, *flat):
        return [_aligned(found.contiguous()) for found in run(gradient, flat, False) if found is not None]

    def fake_backward(gradient, *flat):
        tensors = [tensor for tensor in op.unflatten(flat).tensors() if tensor is not None]
        return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors]

    def setup_context(ctx, inputs, output):
        args = op.unflatten(inputs[:-1])
        saves = inputs[-1] and op.choose(args).saves(args) is not None
        ctx.run_backward = run_backward_operator
        ctx.set_materialize_grads(False)
        if not op.saves_sums or not saves:
            ctx.mark_non_differentiable(output[1])
        _save(ctx, op, args, output[1] if saves else None)

    def run_backward_operator(args, gradient):
        for dim, stride in enumerate(gradient.stride()):
            if stride == 0:  # directions that are summed share one gradient, which compilers would write for each
                gradient = gradient.narrow(dim, 0, 1)
        found = iter(operators[1](gradient, *op.flatten(args)))
        return [None if tensor is None else next(found) for tensor in args.tensors()]

    def autograd_backward(ctx, gradient, dsaved):
        gradients = _gradients(ctx, gradient, dsaved)
        return *gradients, *[None] * (flat_count + 1 - len(gradients))

    flat_count = op.schema.count(",") + 1
    operators = []
    for name, schema, function, fake in (
        (f"vssm::{op.name}", f"({op.schema}, bool save) -> (Tensor, Tensor)", forward, fake_forward),
        (f"vssm::{op.name}_backward", f"(Tensor gradient, {op.schema}) -> Tensor[]", backward, fake_backward),
    ):
        torch.library.define(name, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(name, "default", function)
        torch.library.register_fake(name, fake)
        operators.append(getattr(torch.ops.vssm, name.removeprefix("vssm::")).default)
    torch.library.register_autograd(f"vssm::{op.name}", autograd_backward, setup_context=setup_context)
    return tuple(operators)
