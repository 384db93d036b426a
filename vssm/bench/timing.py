"""Times functions on a device, and measures the two limits of a scan: memory bandwidth and exponentials."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch


def median_time(functions: Sequence[Callable[[], object]], device: torch.device, seconds: float = 0.5) -> float:
    """Median seconds of one call. The functions are called in turn, each with buffers of its own.

    Args:
        functions: the same work on different buffers; a single one would stay in a cache, which real data do not.
        device: a CUDA device is timed with its events, anything else with the clock.
        seconds: how long to measure, after a warm-up of a fifth of that; at least 5 calls.
    """
    turn = cycle(functions)
    _run_for(lambda: next(turn)(), device, seconds / 5, least=2)
    if device.type != "cuda":
        return statistics.median(_run_for(lambda: next(turn)(), device, seconds, least=5))
    calls = max(5, int(seconds / max(_run_for(lambda: next(turn)(), device, 0, least=1)[0], 1e-6)))
    events = [[torch.cuda.Event(enable_timing=True) for _ in "ab"] for _ in range(min(calls, 2000))]
    for start, end in events:
        start.record()
        next(turn)()
        end.record()
    torch.cuda.synchronize(device)
    return statistics.median(start.elapsed_time(end) for start, end in events) / 1e3


def time_in_a_row(functions: Sequence[Callable[[], object]], device: torch.device, calls: int = 200) -> float:
    """Seconds a call takes as Python calls it, one after another: the GPU's time, or the host's where that is longer.

    >>> time_in_a_row([lambda: torch.ones(3)], torch.device("cpu"), calls=3) > 0
    True
    """
    turn = cycle(functions)
    for repeats in (10, calls):  # the first to warm up
        start = time.perf_counter()
        for _ in range(repeats):
            next(turn)()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / calls


def as_graph(function: Callable[[], object]) -> Callable[[], object]:
    """The same work as a CUDA graph, whose time does not include launching kernels from Python."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles kernels and reads scan orders, which is not possible during a capture
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def count_kernels(function: Callable[[], object], device: torch.device) -> int | None:
    """How many kernels a call launches on a GPU, memory copies and fills included; None on another device."""
    if device.type != "cuda":
        return None
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        function()
        torch.cuda.synchronize(device)
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def _run_for(function: Callable[[], object], device: torch.device, seconds: float, least: int) -> list[float]:
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < least or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return times


def allocated_memory(device: torch.device) -> int:
    """Bytes that torch holds on a GPU now; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak_memory(function: Callable[[], object], device: torch.device, before: int = 0) -> float | None:
    """Peak GPU memory of a call in GiB, less the bytes in `before`; None on a CPU.

    Args:
        function: called once.
        device: where.
        before: bytes already allocated that do not belong to the function, such as cuBLAS workspaces.
    """
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**30


@dataclass(frozen=True)
class Ceilings:
    """Measured limits of a device.

    Args:
        bytes_per_second: read plus written, by a large copy.
        exponentials_per_second: float32 exp2 in registers; None on a CPU.
    """

    bytes_per_second: float
    exponentials_per_second: float | None

    @classmethod
    def measure(cls, device: torch.device) -> Ceilings:
        """Measure both, in a few tenths of a second."""
        count = 2**28 if device.type == "cuda" else 2**24
        sources = [torch.randn(count, device=device) for _ in range(2)]
        target = torch.empty_like(sources[0])
        copies = [lambda source=source: target.copy_(source) for source in sources]
        bandwidth = 2 * 4 * count / median_time(copies, device, 0.2)
        return cls(bandwidth, _exponentials(device) if device.type == "cuda" else None)

    def floor(self, bytes_moved: float, exponentials: float) -> float:
        """The shortest time in seconds that the limits allow: the larger of the two bounds."""
        memory = bytes_moved / self.bytes_per_second
        return max(memory, exponentials / self.exponentials_per_second) if self.exponentials_per_second else memory


def _exponentials(device: torch.device) -> float:
    from vssm.bench.ceiling_kernel import REPEATS, exponentials_kernel

    programs, block = 132 * 64, 1024
    out = torch.empty(programs * block, device=device)
    seconds = median_time([lambda: exponentials_kernel[(programs,)](out, block)], device, 0.2)
    return programs * block * REPEATS / seconds
