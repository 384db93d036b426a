"""What was found out once for arguments of a kind: launches hand Triton's launcher what Triton itself would."""

import weakref
from types import SimpleNamespace

import pytest
import torch

from vssm_kernels import gpu
from vssm_kernels.kinds import kind_of

triton = pytest.importorskip("triton", reason="Triton is optional")


class Kernel:
    """As Triton's kernels are launched, on no GPU: remembers what reaches its launcher, in Triton 3.4 to 3.9."""

    arg_names = ("x", "y", "absent", "size", "BLOCK")

    def __init__(self):
        self.looked_at, self.launched = 0, []

    def __getitem__(self, grid):
        def launch(*tensors, num_warps=4, **arguments):
            self.looked_at += 1
            arguments |= dict(zip(self.arg_names, tensors, strict=False))
            bound = [arguments[name] for name in self.arg_names]
            compiled = SimpleNamespace(function="function", packed_metadata="packed", run=self.run)
            self.run(*grid, 1, 1, "stream None", "function", "packed", None, None, None, *bound)
            return compiled

        return launch

    def run(self, *arguments):
        self.launched.append([a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments])


@pytest.fixture
def kernel(monkeypatch):
    driver = SimpleNamespace(get_current_stream=lambda device: f"stream {device}")
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=driver))
    monkeypatch.setattr(gpu, "_current_device", lambda: None)  # that of tensors on the CPU
    return Kernel()


def launcher_of(kernel):
    return gpu.Launcher(kernel, (7,), size=3, BLOCK=16, num_warps=2)


def test_the_second_launch_is_the_first_with_other_tensors(kernel):
    x, y = torch.ones(3), torch.ones(3)
    launch = launcher_of(kernel)
    for a, b in ((x, y), (y, x)):
        launch(a, b, None)
    first, second = kernel.launched
    assert kernel.looked_at == 1
    assert second[:9] == first[:9] == [7, 1, 1, "stream None", "function", "packed", None, None, None]
    assert first[9:] == [x.data_ptr(), y.data_ptr(), None, 3, 16]
    assert second[9:] == [y.data_ptr(), x.data_ptr(), None, 3, 16]


def test_another_gpu_is_made_the_current_one(kernel, monkeypatch):
    x, launch = torch.ones(3), launcher_of(kernel)
    launch(x, x, None)
    monkeypatch.setattr(gpu, "_current_device", lambda: 1)
    launch(x, x, None)
    assert kernel.looked_at == 2  # there, as Triton launches


def test_no_launch_keeps_a_tensor_alive(kernel):
    x = torch.ones(3)
    launch, alive = launcher_of(kernel), weakref.ref(x)
    launch(x, x, None)
    del x
    assert alive() is None


def test_profilers_of_tritons_see_every_launch(kernel, monkeypatch):
    chain = SimpleNamespace(calls=[])
    monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", chain)
    x, launch = torch.ones(3), launcher_of(kernel)
    launch(x, x, None)
    chain.calls.append(print)
    launch(x, x, None)
    assert kernel.looked_at == 2


def test_interpreted_kernels_go_tritons_way(kernel):
    calls = []

    class Interpreted(Kernel):
        def __getitem__(self, grid):
            return lambda *tensors, **arguments: calls.append(tensors)

    launch, x = launcher_of(Interpreted()), torch.ones(3)
    for _ in range(2):
        launch(x, x, None)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "other",
    [
        torch.ones(2, 4, 3),
        torch.ones(2, 6, 6)[..., ::2],
        torch.ones(2, 6, 3, dtype=torch.bfloat16),
        torch.ones(37)[1:].view(2, 6, 3),
        torch.ones(2, 6, 3, requires_grad=True),
        None,
    ],
    ids=["shape", "stride", "dtype", "alignment", "gradient", "absent"],
)
def test_what_a_run_depends_on_makes_another_kind(other):
    assert kind_of((torch.ones(2, 6, 3), 1)) == kind_of((torch.zeros(2, 6, 3), 1))
    assert kind_of((torch.ones(2, 6, 3), 1)) != kind_of((other, 1))
