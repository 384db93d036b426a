"""Modules as CUDA graphs: the GPU is told once what a call launches, and Python no longer launches it kernel by kernel.

A graph is the sequence of kernels of one call, on the memory of that call. It is right as long as the call would launch
the same kernels on the same parameters, so each is kept under everything that this depends on: see `_Watch`.
"""

from __future__ import annotations

import random
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.modules.module import _has_any_global_hook

from vssm.ops import runs_eagerly

Output = Tensor | Sequence[Tensor]

# Equal calls in a row, of which the last is captured: the first ones compile kernels, and shapes that come once, such
# as that of the last batch of an epoch, are not worth a graph.
CALLS = 3
# Graphs of a module: for a training, its validation, and as many again. The least recently used one is dropped.
MOST = 4


def graph_module(
    module: nn.Module,
    tell: Callable[[str], None] = warnings.warn,
    capture: Callable[[nn.Module, Tensor], Any] | None = None,
    device: str = "cuda",
) -> None:
    """Let a module run as CUDA graphs, in place: its forward as one, and where gradients are wanted its backward too.

    Nothing is compiled. The third of equal calls in a row is captured, which takes about as long as three eager ones;
    from then on calls of this kind replay. Results are those of eager calls, random numbers included, and parameters
    and buffers may change between calls: a graph reads their memory, and one whose memory was replaced is no longer
    used. Everything else runs eagerly: other shapes, several arguments, inputs that want a gradient, layers with hooks,
    a second forward before the backward of the first, a device other than the GPU. Threads may call the module at once:
    replays take turns, and each stream of the GPU has graphs of its own. Where a call cannot be captured
    (it waits for the GPU, draws random numbers on the CPU, or leaves too little memory), this is told once, and calls
    of its kind, with or without gradients, stay eager.

    A graph keeps the memory of one call to itself. What a forward decides by Python values that change between calls,
    other than those that `train` and `requires_grad_` set, is as it was when the graph was made. Second derivatives of
    a replayed call are refused. A copy of the module runs eagerly.

    Args:
        module: takes a tensor and returns a tensor or several.
        tell: is given a sentence for each thing that keeps calls from being replayed.
        capture: makes the graph of a call, for tests.
        device: type of the inputs that are captured, for tests.

    >>> layer = nn.Linear(2, 3)
    >>> graph_module(layer)
    >>> layer(torch.randn(1, 2)).shape
    torch.Size([1, 3])
    """
    # Where torch.compile puts its own: inside `module(...)`, and not in copies of the module.
    module._compiled_call_impl = _Calls(module, tell, capture or GraphedCall, device)


class _Calls:
    """Decides for each call of a module whether it runs eagerly, is captured, or replays."""

    def __init__(self, module: nn.Module, tell: Callable[[str], None], capture: Callable, device: str) -> None:
        self.module, self.tell, self.capture, self.device = module, tell, capture, device
        self.watch = _Watch(module)
        self.graphs: OrderedDict[Hashable, Any] = OrderedDict()
        self.last: Hashable = None
        self.times = 0
        self.eager_only: set[bool] = set()  # with gradients, without
        self.told: set[str] = set()
        self.capturing = False
        # A replay writes into the memory of the one before it: threads take turns until the outputs are copied.
        self.turns = threading.RLock()

    def __call__(self, *arguments: Any, **named: Any) -> Output:
        if len(arguments) == 1 and not named:
            x = arguments[0]
            if type(x) is Tensor and x.device.type == self.device and not x.requires_grad and runs_eagerly():
                with self.turns:
                    graph = None if self.capturing else self._graph_of(x)
                    if graph is not None:
                        return graph(x)
        return self.module._call_impl(*arguments, **named)

    def _graph_of(self, x: Tensor) -> Any | None:
        state = self.watch.state()
        if state is None:
            return self._told("a layer has hooks, which a replay would not call")
        key = (x.shape, x.stride(), x.dtype, x.device, *_modes(x.device), state)
        graph = self.graphs.get(key)
        if graph is None:
            self.times = self.times + 1 if key == self.last else 1
            self.last = key
            if self.times < CALLS or torch.is_grad_enabled() in self.eager_only:
                return None
            graph = self._captured(x)
            if graph is None:
                return None
            self.graphs[key] = graph
            if len(self.graphs) > MOST:
                self.graphs.popitem(last=False)
        self.graphs.move_to_end(key)
        # The backward of the call before needs the memory that a replay would overwrite.
        return None if graph.awaits_backward() else graph

    def _captured(self, x: Tensor) -> Any | None:
        self.capturing = True
        try:
            with _unchanged(self.module, x):
                return self.capture(self.module, x)
        except Exception as error:  # a forward may do anything, and did it without a graph
            # Theirs are the random numbers of the generator that a failed capture used up.
            self.graphs.clear()
            self.eager_only.add(torch.is_grad_enabled())
            reason = str(error).strip().partition("\n")[0]
            return self._told(f"capturing ended with {type(error).__name__}: {reason}")
        finally:
            self.capturing = False

    def _told(self, reason: str) -> None:
        kind = "training" if torch.is_grad_enabled() else "inference"
        sentence = f"no CUDA graph, {kind} of the {type(self.module).__name__} runs eagerly: {reason}"
        if sentence not in self.told:
            self.told.add(sentence)
            self.tell(sentence)


def _modes(device: torch.device) -> tuple[Hashable, ...]:
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    # On another stream a replay would overwrite the memory of one that still runs.
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast, stream


class _Watch:
    """What a graph of a module depends on: its layers' modes, and where in memory their parameters and buffers are.

    Asked before every call, so what it looks at is collected in lists once.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._list()

    def _list(self) -> None:
        self.parts = list(self.module.modules())
        self.inner = [part._modules for part in self.parts]
        self.children = self._children()
        self.held = [held for part in self.parts for held in (part._parameters, part._buffers)]
        self.hooks = [
            hooks
            for part in self.parts
            for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
        ]

    def _children(self) -> list[nn.Module | None]:
        return [child for inner in self.inner for child in inner.values()]

    def state(self) -> tuple[Hashable, ...] | None:
        """A value that is equal as long as a graph may be replayed; None where there are hooks."""
        if self._children() != self.children:  # a head was replaced
            self._list()
        if any(self.hooks) or _has_any_global_hook():
            return None
        tensors = [tensor for held in self.held for tensor in held.values() if tensor is not None]
        return (
            tuple([part.training for part in self.parts]),
            tuple([tensor.data_ptr() for tensor in tensors]),
            tuple([tensor.requires_grad for tensor in tensors]),
        )


@contextmanager
def _unchanged(module: nn.Module, x: Tensor) -> Iterator[None]:
    """Run what calls the module, and leave its buffers and all random numbers as they were.

    Raises RuntimeError if random numbers of the CPU were drawn: a replay would draw none.
    """
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    of_python, of_cpu = random.getstate(), torch.get_rng_state()
    on_gpu = torch.cuda.default_generators[x.device.index] if x.is_cuda else None
    before = on_gpu.clone_state() if on_gpu else None
    try:
        yield
        if random.getstate() != of_python or not torch.equal(torch.get_rng_state(), of_cpu):
            raise RuntimeError("the forward draws random numbers on the CPU, which a replay would not")
        if on_gpu:
            on_gpu.set_state(before.get_state())
    except BaseException:
        if on_gpu:
            on_gpu.graphsafe_set_state(before)  # the old one may wait for the end of a capture that was broken off
        raise
    finally:
        random.setstate(of_python)
        torch.set_rng_state(of_cpu)
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


class GraphedCall:
    """One kind of call of a module as CUDA graphs.

    Args:
        module: runs twice, once to see what it needs; it may then be called with the same kind of input.
        x: such an input.

    Raises:
        RuntimeError: the call cannot be captured; or memory for another such call would be lacking.
    """

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        # A capture that is broken off does not go back to the stream it came from.
        with (
            torch.cuda.device(x.device),
            torch.cuda.stream(torch.cuda.current_stream(x.device)),
            _autocast_without_cache(),
        ):
            self._capture(module, x)

    def _capture(self, module: nn.Module, x: Tensor) -> None:
        wanted = torch.is_grad_enabled()
        trained = {name: each for name, each in module.named_parameters() if wanted and each.requires_grad}
        self.trained = list(trained.values())
        # The same memory as new leaves: autograd runs old ones on the stream of earlier steps, which is not captured.
        leaves = {name: nn.Parameter(parameter.detach()) for name, parameter in trained.items()}
        self.given, self._turn = x.clone(), _no_turn
        present, stream = torch.cuda.current_stream(), torch.cuda.Stream()

        def forward() -> Output:
            return functional_call(module, leaves, (self.given,))

        def backward(outputs: list[Tensor], upstream: list[Tensor]) -> Sequence[Tensor | None]:
            with torch.autocast("cuda", enabled=False):
                return torch.autograd.grad(outputs, list(leaves.values()), upstream, allow_unused=True)

        stream.wait_stream(present)
        try:
            with torch.cuda.stream(stream), _room_for_another(), _no_waiting():
                outputs = _listed(forward())
                self.upstream = [torch.zeros_like(each) for each in outputs] if leaves else []
                if leaves:
                    backward(outputs, self.upstream)
                del outputs
        finally:
            present.wait_stream(stream)

        pool = torch.cuda.graph_pool_handle()
        # Other threads may use the GPU meanwhile, such as the one that pins batches.
        options = {"pool": pool, "stream": stream, "capture_error_mode": "thread_local"}
        self.forward_graph, self.backward_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward_graph, **options):
            result = forward()
        outputs = _listed(result)
        self.gradients: Sequence[Tensor | None] = ()
        if leaves:
            with torch.cuda.graph(self.backward_graph, **options):
                self.gradients = backward(outputs, self.upstream)
        self.outputs = [each.detach() for each in outputs]
        self._kind = None if isinstance(result, Tensor) else type(result)

    def __call__(self, x: Tensor) -> Output:
        """Copies of the outputs for x, which is like the input that was captured."""
        found = _Replay.apply(self, x, *self.trained) if self.trained else self.replay_forward(x)
        return found[0] if self._kind is None else self._kind(found)

    def awaits_backward(self) -> bool:
        """Whether the outputs of the last call are still there and their backward has not run."""
        return self._turn() is not None

    def begin(self, turn: object) -> None:
        """Count as awaiting a backward while `turn` exists."""
        self._turn = weakref.ref(turn)

    def replay_forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.given.copy_(x)
        self.forward_graph.replay()
        return tuple([each.clone() for each in self.outputs])

    def replay_backward(self, upstream: Sequence[Tensor]) -> Iterator[Tensor | None]:
        for place, gradient in zip(self.upstream, upstream, strict=True):
            place.copy_(gradient)
        self.backward_graph.replay()
        # Copies, as `parameter.grad` would otherwise be the memory that the next step writes.
        copies = iter(torch._foreach_mul([each for each in self.gradients if each is not None], 1))
        return (None if each is None else next(copies) for each in self.gradients)


def _no_turn() -> None:
    return None


class _Turn:
    """A forward whose backward may follow."""


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: GraphedCall, x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        ctx.call, ctx.turn = call, _Turn()
        call.begin(ctx.turn)
        return call.replay_forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.turn is None:
            raise RuntimeError(
                "a second backward through a call that was replayed as a CUDA graph: its activations are gone; call "
                "the module again, or leave graph_module out (--compile off)"
            )
        gradients = ctx.call.replay_backward(upstream)
        ctx.turn = None
        return None, None, *gradients


def _listed(result: Any) -> list[Tensor]:
    """The outputs of a call.

    Raises RuntimeError for those that a graph cannot give.
    """
    outputs = [result] if isinstance(result, Tensor) else result
    if type(outputs) not in (list, tuple) or not all(type(each) is Tensor for each in outputs):
        raise RuntimeError(f"the module returns a {type(result).__name__}; expected a tensor, or a list of them")
    if len({each.requires_grad for each in outputs}) > 1:
        raise RuntimeError("some of the outputs have gradients and others have none")
    return list(outputs)


@contextmanager
def _autocast_without_cache() -> Iterator[None]:
    """The same autocast, but parameters are cast inside the graph, so that a replay sees their present values."""
    dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
    with torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False):
        yield


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Raise RuntimeError where the CPU waits for the GPU, as most forwards that cannot be captured do.

    A capture that ends there instead would keep its memory until the process ends.
    """
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "a prototype feature"
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@contextmanager
def _room_for_another() -> Iterator[None]:
    """Measure what a call takes; raises OutOfMemoryError where a graph that keeps as much leaves too little."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    yield
    needed = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if 2 * needed > free:
        raise torch.OutOfMemoryError(
            f"a graph would keep {needed / 2**30:.1f} GiB and an eager call takes as much, but {free / 2**30:.1f} GiB "
            "are free"
        )
