"""Any timm model end to end: inference and training throughput, peak memory, latency of a single image."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum

import timm
import torch
from torch import Tensor, nn

import vssm.models  # noqa: F401  (registers the models)
from vssm.bench.flops import Flops, count_flops
from vssm.bench.timing import allocated_memory, as_graph, count_kernels, median_time, peak_memory
from vssm.nn import Block, compile_module


class Execution(Enum):
    """How a model is run."""

    EAGER = "eager"
    COMPILED = "compiled"
    GRAPH = "CUDA graph"
    COMPILED_GRAPH = "compiled, CUDA graph"

    @property
    def compiled(self) -> bool:
        return self in (Execution.COMPILED, Execution.COMPILED_GRAPH)

    @property
    def captured(self) -> bool:
        return self in (Execution.GRAPH, Execution.COMPILED_GRAPH)


@contextmanager
def _timed_convolutions() -> Iterator[None]:
    """Lets cuDNN time its algorithms, as timm's benchmark does: its default choice is slow for some first layers."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@_timed_convolutions()
def benchmark_model(
    name: str,
    size: int,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    execution: Execution,
    training: bool,
    arguments: Mapping[str, object] | None = None,
    seconds: float = 2.0,
) -> dict[str, object]:
    """One row of results.

    Args:
        name: of any timm model; attention runs through torch's scaled_dot_product_attention, as in timm by default.
        size: of the images, in pixels.
        batch: images at once.
        device: where.
        dtype: float32, or a half precision under autocast.
        execution: eager, compiled, as a CUDA graph (which leaves out the time of kernel launches), or both.
        training: forward, backward and an AdamW step; else inference.
        arguments: of the model, such as scan_order.
        seconds: how long to measure.
    """
    gc.collect()
    before = allocated_memory(device)
    torch.manual_seed(0)
    with device:  # a GPU draws initial weights faster
        model = _create(name, size, arguments or {}).train(training)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # Of ours; the kernels of stem and head are shared out among them.
    blocks = sum(isinstance(module, Block) for module in model.modules())
    if execution.compiled:
        torch.compiler.reset()  # else another batch size makes sizes symbolic
        compile_module(model)
    batches = [torch.randn(batch, 3, size, size, device=device) for _ in range(2)]
    # Autocast caches casts of weights. A captured graph must not depend on that cache.
    how = {"enabled": dtype != torch.float32, "cache_enabled": not execution.captured}
    autocast = torch.autocast(device.type, dtype, **how)
    step = _training_step(model, autocast, device) if training else _inference(model, autocast)
    functions = [lambda images=images: step(images) for images in batches]
    check_finite(step(batches[0]), name)
    peak = peak_memory(functions[0], device, before)
    # A graph has those of the same run outside of it.
    kernels = None if execution.captured else count_kernels(functions[0], device)
    if execution.captured:
        functions = [as_graph(function) for function in functions]
    median = median_time(functions, device, seconds)
    return {
        "model": name,
        "size": size,
        "batch": batch,
        "dtype": str(dtype).removeprefix("torch."),
        "mode": "train" if training else "infer",
        "execution": execution.value,
        "parameters_m": parameters / 1e6,
        "ms": 1e3 * median,
        "images_per_second": batch / median,
        "peak_gib": peak,
        "kernels": kernels,
        "kernels_per_block": kernels / blocks if kernels is not None and blocks else None,
    }


def model_flops(name: str, size: int, arguments: Mapping[str, object] | None = None) -> Flops:
    """Operations for one image, by the convention in `vssm.bench.flops`."""
    with torch.device("meta"):
        model, image = _create(name, size, arguments or {}).eval(), torch.empty(1, 3, size, size)
    return count_flops(lambda: model(image))


def check_finite(output: Tensor, name: str) -> None:
    """Raise AssertionError where a model's output is not finite: its time would mean nothing."""
    assert torch.isfinite(output).all(), f"{name} gives values that are not finite; not timed"


def _create(name: str, size: int, arguments: Mapping[str, object]) -> nn.Module:
    """Pass the image size to models that take it; the others accept any size."""
    try:
        return timm.create_model(name, **{"img_size": size, **arguments})
    except TypeError:
        return timm.create_model(name, **arguments)


def _inference(model: nn.Module, autocast: torch.autocast) -> Callable[[Tensor], Tensor]:
    def step(images: Tensor) -> Tensor:
        with torch.no_grad(), autocast:
            return model(images)

    return step


def _training_step(model: nn.Module, autocast: torch.autocast, device: torch.device) -> Callable[[Tensor], Tensor]:
    gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=gpu, capturable=gpu)

    def step(images: Tensor) -> Tensor:
        labels = torch.zeros(len(images), dtype=torch.long, device=device)
        with autocast:
            logits = model(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
