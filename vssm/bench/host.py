"""What a block costs the host in eager mode on a GPU, measured without one: the kernels are left out.

Tensors on the CPU go the way of tensors on a GPU, up to the launch of each kernel of ours. So the calls of Python and C
are those of a GPU's host, but for torch's own operations, which compute here, on few tokens.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import timm
import torch
from torch import Tensor, nn

import vssm_kernels.gpu
from vssm.models import FAMILIES
from vssm.nn import Block
from vssm_kernels import dispatch

SIZE = 64  # pixels a side of the image whose tokens the block is given


def benchmark_host(name: str, training: bool, runs: int = 30) -> dict[str, object]:
    """One row of results: of the first block of a model of ours made small, under autocast in bfloat16.

    Args:
        name: of a model that its family's `small` names.
        training: forward and backward; else a forward without gradients.
        runs: of which the time is the median.

    Raises:
        ValueError: a model without a small form or without `vssm.nn.Block`.

    >>> benchmark_host("vim_tiny", training=False, runs=2)["launches"]
    5
    """
    family = next((family for family in FAMILIES.values() if name in family.small), None)
    if family is None:
        known = sorted(model for family in FAMILIES.values() for model in family.small)
        raise ValueError(f"{name} has no small form; expected one of {', '.join(known)}")
    model = timm.create_model(name, **family.small[name]).train(training)
    block = next((module for module in model.modules() if isinstance(module, Block)), None)
    if block is None:
        raise ValueError(f"{name} has no vssm.nn.Block, whose calls are counted")
    inputs = _inputs_of(block, model)

    def step() -> None:
        with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
            output = block(*inputs)
        if training:
            block.zero_grad()
            output.backward(torch.ones_like(output))

    with _as_on_a_gpu() as launched:
        for _ in range(3):
            step()
        launched.clear()
        calls = _count_calls(step)
        launches = launched.total()
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
    return {
        "model": name,
        "mode": "train" if training else "infer",
        "python_calls": calls["call"],
        "c_calls": calls["c_call"],
        "launches": launches,  # of kernels of ours
        "us": 1e6 * statistics.median(times),
    }


def _inputs_of(block: nn.Module, model: nn.Module) -> tuple[Any, ...]:
    given: list[tuple[Any, ...]] = []
    hook = block.register_forward_pre_hook(lambda module, inputs: given.append(inputs))
    with torch.no_grad():
        model(torch.randn(2, 3, SIZE, SIZE))
    hook.remove()
    return tuple(part.detach() if isinstance(part, Tensor) else part for part in given[0])


def _count_calls(function: Callable[[], None]) -> Counter[str]:
    counts: Counter[str] = Counter()

    def count(frame: FrameType, event: str, argument: object) -> None:
        counts[event] += 1

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return counts


@contextmanager
def _as_on_a_gpu() -> Iterator[Counter[str]]:
    """Inside, tensors take the way of a GPU's, and launches of our kernels are counted instead of made."""
    launched: Counter[str] = Counter()

    def launch(self: vssm_kernels.gpu.Launcher, *tensors: Tensor | None) -> None:
        launched[self.kernel.fn.__name__] += 1
        for tensor in tensors:  # as the real one does
            if tensor is not None:
                tensor.data_ptr()

    stand_ins = {
        vssm_kernels.gpu.why_no_triton: lambda *tensors: None,
        dispatch.why_not_cpu: lambda *tensors: "its tensors count as a GPU's",
    }
    replaced = []
    for module in [module for name, module in sys.modules.items() if name.startswith("vssm_kernels")]:
        for name, value in list(vars(module).items()):
            if callable(value) and value in stand_ins:
                setattr(module, name, stand_ins[value])
                replaced.append((module, name, value))
    torch.Tensor.is_cuda = property(lambda tensor: True)
    really, vssm_kernels.gpu.Launcher.__call__ = vssm_kernels.gpu.Launcher.__call__, launch
    dispatch.forget()
    try:
        yield launched
    finally:
        del torch.Tensor.is_cuda
        vssm_kernels.gpu.Launcher.__call__ = really
        dispatch.forget()
        for module, name, value in replaced:
            setattr(module, name, value)
