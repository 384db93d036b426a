"""Times of functions on a device, and the two ceilings that bound a scan: memory and exponentials."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch


def median_time(functions: Sequence[Callable[[], object]], device: torch.device, seconds: float = 0.5) -> float:
    """Median seconds of one call; the functions are called in turn, so that each can have buffers of its own.

    Args:
        functions: the same work on different memory: one buffer would be read from a cache that real data do not hit.
        device: a CUDA device is timed with its events, anything else with the clock.
        seconds: how long to measure, after a fifth of that as warm-up; at least 5 calls are made.
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


def as_graph(function: Callable[[], object]) -> Callable[[], object]:
    """The same work as a CUDA graph: its time is that of the kernels, not that of launching them from Python."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles, and reads scan orders, which a capture cannot
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


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
    """GiB of GPU memory at the peak of a call, beyond the bytes `before`; None on a CPU.

    Args:
        function: called once.
        device: where.
        before: held by what does not belong to the function, such as what cuBLAS keeps from earlier work.
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
    """What a device does at best, measured, not taken from a data sheet.

    Args:
        bytes_per_second: read and written, of a large copy.
        exponentials_per_second: of float32 exp2 on registers; None where it was not measured.
    """

    bytes_per_second: float
    exponentials_per_second: float | None

    @classmethod
    def measure(cls, device: torch.device) -> Ceilings:
        """A few tenths of a second of copying and of exponentials."""
        count = 2**28 if device.type == "cuda" else 2**24
        sources = [torch.randn(count, device=device) for _ in range(2)]
        target = torch.empty_like(sources[0])
        copies = [lambda source=source: target.copy_(source) for source in sources]
        bandwidth = 2 * 4 * count / median_time(copies, device, 0.2)
        return cls(bandwidth, _exponentials(device) if device.type == "cuda" else None)

    def floor(self, bytes_moved: float, exponentials: float) -> float:
        """Seconds that no implementation goes far below: the larger of the two bounds."""
        memory = bytes_moved / self.bytes_per_second
        return max(memory, exponentials / self.exponentials_per_second) if self.exponentials_per_second else memory


def _exponentials(device: torch.device) -> float:
    from vssm.bench.ceiling_kernel import REPEATS, exponentials_kernel

    programs, block = 132 * 64, 1024
    out = torch.empty(programs * block, device=device)
    seconds = median_time([lambda: exponentials_kernel[(programs,)](out, block)], device, 0.2)
    return programs * block * REPEATS / seconds
