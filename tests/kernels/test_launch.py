"""A launch that was seen before hands Triton's launcher what Triton itself would, without looking at the arguments."""

from types import SimpleNamespace

import pytest
import torch

from vssm_kernels import gpu

triton = pytest.importorskip("triton", reason="Triton is optional")


class Kernel:
    """As Triton's kernels are launched, on no GPU: remembers what reaches its launcher, in Triton 3.4 to 3.9."""

    arg_names = ("x", "y", "size", "absent", "BLOCK")

    def __init__(self):
        self.looked_at, self.launched = 0, []

    def __getitem__(self, grid):
        def launch(*, num_warps=4, **arguments):
            self.looked_at += 1
            bound = [arguments[name] for name in self.arg_names]
            compiled = SimpleNamespace(function="function", packed_metadata="packed", run=self.run)
            self.run(*grid, 1, 1, "stream 0", "function", "packed", None, None, None, *bound)
            return compiled

        return launch

    def run(self, *arguments):
        self.launched.append([a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments])


@pytest.fixture
def kernel(monkeypatch):
    driver = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: f"stream {device}")
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=driver))
    monkeypatch.setattr(gpu, "_prepared", {})
    return Kernel()


def launch(kernel, x, y, grid=(7,), **numbers):
    tensors = {"x": x, "y": y, "absent": None}
    numbers = {"size": x.numel(), "BLOCK": 16, "num_warps": 2, **numbers}
    gpu.launch(kernel, grid, gpu.signature(x, y), tensors, lambda: numbers)


def test_the_second_launch_is_the_first_with_other_tensors(kernel):
    x, y = torch.ones(3), torch.ones(3)
    for a, b in ((x, y), (y, x)):
        launch(kernel, a, b)
    first, second = kernel.launched
    assert kernel.looked_at == 1
    assert second[:9] == first[:9] == [7, 1, 1, "stream 0", "function", "packed", None, None, None]
    assert first[9:] == [x.data_ptr(), y.data_ptr(), 3, None, 16]
    assert second[9:] == [y.data_ptr(), x.data_ptr(), 3, None, 16]


@pytest.mark.parametrize(
    "other",
    [
        torch.ones(4),
        torch.ones(6)[::2],
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(4)[1:],  # of another alignment
    ],
    ids=["shape", "stride", "dtype", "alignment"],
)
def test_what_a_kernel_depends_on_is_looked_at_again(kernel, other):
    launch(kernel, torch.ones(3), torch.ones(3))
    launch(kernel, torch.ones(3), other)
    assert kernel.looked_at == 2


def test_another_grid_is_another_launch(kernel):
    x = torch.ones(3)
    for grid in ((7,), (8,)):
        launch(kernel, x, x, grid)
    assert [arguments[0] for arguments in kernel.launched] == [7, 8]


def test_profilers_of_tritons_see_every_launch(kernel, monkeypatch):
    chain = SimpleNamespace(calls=[])
    monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", chain)
    x = torch.ones(3)
    launch(kernel, x, x)
    chain.calls.append(print)
    launch(kernel, x, x)
    assert kernel.looked_at == 2


def test_interpreted_kernels_go_tritons_way(kernel):
    interpreted = SimpleNamespace(arg_names=(), calls=0)

    class Interpreted(Kernel):
        def __getitem__(self, grid):
            return lambda **arguments: setattr(interpreted, "calls", interpreted.calls + 1)

    unprepared, x = Interpreted(), torch.ones(3)
    for _ in range(2):
        launch(unprepared, x, x)
    assert interpreted.calls == 2 and not gpu._prepared
