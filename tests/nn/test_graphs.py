"""Which calls of a module are replayed as CUDA graphs, with a stand-in for the graphs."""

import copy
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from vssm.nn import graph_module, run_fast
from vssm.nn.graphs import CALLS, MOST, _modes


class Recorded:
    """Stands for a graph on a machine without a GPU: computes eagerly, and counts."""

    made, replayed, awaiting, fault = 0, 0, False, None

    def __init__(self, module, x):
        Recorded.made += 1
        self.module = module
        module(x)  # which moves the statistics of norms, and draws random numbers
        if Recorded.fault is not None:
            raise Recorded.fault

    def __call__(self, x):
        Recorded.replayed += 1
        return self.module._call_impl(x)

    def awaits_backward(self):
        return Recorded.awaiting


@pytest.fixture
def recorded(monkeypatch):
    for name, value in {"made": 0, "replayed": 0, "awaiting": False, "fault": None}.items():
        monkeypatch.setattr(Recorded, name, value)
    return Recorded


class Noise(nn.Module):
    """Draws random numbers on the CPU, which a graph cannot."""

    def forward(self, x):
        return x * random.random()


def graphed(*layers):
    told = []
    module = nn.Sequential(*(layers or (nn.Linear(3, 4), nn.BatchNorm1d(4))))
    graph_module(module, told.append, Recorded, device="cpu")
    return module, told


def call(module, times, shape=(2, 3)):
    for _ in range(times):
        module(torch.randn(shape))


def test_the_third_of_equal_calls_is_captured_and_all_after_it_replay(recorded):
    module, told = graphed()
    call(module, CALLS - 1)
    assert (recorded.made, recorded.replayed) == (0, 0)
    call(module, 3)
    assert (recorded.made, recorded.replayed) == (1, 3)
    assert not told


def test_a_shape_that_comes_once_is_eager_and_does_not_end_the_replays(recorded):
    module, _ = graphed()
    call(module, CALLS)
    call(module, 1, shape=(5, 3))
    call(module, 1)
    assert (recorded.made, recorded.replayed) == (1, 2)


def test_shapes_that_alternate_are_never_captured(recorded):
    module, _ = graphed()
    for rows in [2, 5] * 5:
        call(module, 1, shape=(rows, 3))
    assert recorded.made == 0


@pytest.mark.parametrize("change", ["mode", "grad", "autocast", "dtype", "strides", "frozen", "memory", "assigned"])
def test_what_a_graph_depends_on_asks_for_another_one(recorded, change):
    module, _ = graphed(nn.Linear(3, 3))
    x = torch.randn(3, 3)
    for _ in range(CALLS):
        module(x)
    assert recorded.replayed == 1
    if change == "mode":
        module[0].eval()
    elif change == "dtype":
        x = x.double()
        module.double()
    elif change == "strides":
        x = x.T
    elif change == "frozen":
        module[0].bias.requires_grad_(False)
    elif change == "memory":
        module[0].weight.data = module[0].weight.data.clone()
    elif change == "assigned":
        module.load_state_dict({name: value.clone() for name, value in module.state_dict().items()}, assign=True)
    with (
        torch.set_grad_enabled(change != "grad"),
        torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"),
    ):
        module(x)
    assert recorded.replayed == 1


def test_a_head_that_was_replaced_is_seen(recorded):
    module, _ = graphed(nn.Linear(3, 3), nn.Linear(3, 3))
    call(module, CALLS)
    module[1] = nn.Linear(3, 5)
    assert module(torch.randn(2, 3)).shape == (2, 5) and recorded.replayed == 1
    call(module, CALLS)
    module[1].register_forward_hook(lambda *_: None)
    replayed = recorded.replayed
    call(module, 1)
    assert recorded.replayed == replayed > 1


def test_parameters_that_change_in_place_keep_the_graph(recorded):
    module, _ = graphed(nn.Linear(3, 3))
    optimizer = torch.optim.AdamW(module.parameters())
    for _ in range(CALLS + 2):
        module(torch.randn(2, 3)).sum().backward()
        optimizer.step()
    module.load_state_dict({name: value.clone() for name, value in module.state_dict().items()})
    call(module, 1)
    assert (recorded.made, recorded.replayed) == (1, 4)


@pytest.mark.parametrize("of_all", [False, True])
def test_hooks_are_called_and_told_once(recorded, of_all):
    module, told = graphed()
    call(module, CALLS)
    seen = []
    register = register_module_forward_hook if of_all else module[0].register_forward_hook
    hook = register(lambda layer, *_: seen.append(layer))
    call(module, 2)
    assert seen.count(module[0]) == 2 and recorded.replayed == 1
    assert len(told) == 1 and "a layer has hooks" in told[0]
    hook.remove()
    call(module, 1)
    assert recorded.replayed == 2


@pytest.mark.parametrize("awaiting", [True, False])
def test_a_forward_before_the_backward_of_the_last_one_is_eager(recorded, awaiting):
    module, _ = graphed()
    call(module, CALLS)
    recorded.awaiting = awaiting
    call(module, 1)
    assert recorded.replayed == (1 if awaiting else 2)


def test_inputs_that_want_gradients_and_several_inputs_are_eager(recorded):
    module, _ = graphed(nn.Bilinear(3, 3, 2))
    module.forward = lambda x, y=None: module[0](x, x if y is None else y)
    for _ in range(CALLS + 1):
        module(torch.randn(2, 3), torch.randn(2, 3))
        module(torch.randn(2, 3).requires_grad_())
        module(x=torch.randn(2, 3))
    assert recorded.made == 0


def test_a_capture_that_fails_leaves_everything_as_it_was(recorded):
    """The same numbers as without graphs: weights, statistics of norms, random numbers, and gradients."""
    results = []
    for fault in (None, RuntimeError("operation not permitted when stream is capturing\nmore")):
        recorded.fault = fault
        torch.manual_seed(0)
        module, told = graphed(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        if fault is None:
            del module._compiled_call_impl  # eager
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(CALLS + 2):
            loss = module(torch.randn(4, 3)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        results.append((loss.detach(), *module.state_dict().values()))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    assert recorded.made == 1
    assert told == [
        "no CUDA graph, training of the Sequential runs eagerly: capturing ended with RuntimeError: operation not "
        "permitted when stream is capturing"
    ]


def test_after_a_training_that_cannot_be_captured_inference_still_is(recorded):
    module, told = graphed()
    recorded.fault = RuntimeError("no")
    call(module, CALLS + 1)
    recorded.fault = None
    module.eval()
    with torch.no_grad():
        call(module, CALLS)
    assert (recorded.made, recorded.replayed, len(told)) == (2, 1, 1)


def test_random_numbers_of_the_cpu_are_not_frozen_into_a_graph(recorded):
    module, told = graphed(nn.Linear(3, 3), Noise())
    call(module, CALLS)
    assert recorded.replayed == 0
    assert "draws random numbers on the CPU" in told[0]


def test_few_graphs_are_kept_and_the_one_used_longest_ago_gives_way(recorded):
    module, _ = graphed()
    for rows in range(2, MOST + 3):
        call(module, CALLS, shape=(rows, 3))
        call(module, 1)
    made = recorded.made
    call(module, 1)
    call(module, 1, shape=(MOST + 2, 3))
    assert recorded.made == made == MOST + 1
    replayed = recorded.replayed
    call(module, 1, shape=(3, 3))
    assert recorded.replayed == replayed


def test_copies_run_eagerly(recorded):
    module, _ = graphed()
    call(copy.deepcopy(module), CALLS + 1)
    assert recorded.made == 0


def test_watched_calls_are_eager(recorded):
    from torch.utils.flop_counter import FlopCounterMode

    module, _ = graphed()
    call(module, CALLS)
    with FlopCounterMode(display=False) as counter:
        call(module, 1)
    assert counter.get_total_flops() > 0 and recorded.replayed == 1


def test_a_cpu_has_no_graphs_and_nothing_is_said():
    module, told = nn.Linear(3, 3), []
    run_fast(module, None, told.append)
    run_fast(module, False, told.append)
    assert module._compiled_call_impl is None and not told
    run_fast(module, {"backend": "eager"}, told.append)
    assert told == ["The model is compiled on its first steps, which are slow."]


@pytest.fixture
def still_cuda(monkeypatch):
    """A torch.cuda whose graphs do nothing when they replay: right for the input and weights of the capture."""

    @contextmanager
    def nothing(*_, **__):
        yield

    graph, stream = SimpleNamespace(replay=lambda: None), SimpleNamespace(wait_stream=lambda _: None)
    results = {"memory_allocated": 0, "max_memory_allocated": 5, "mem_get_info": (100, 100), "graph_pool_handle": 0}
    results |= {"get_sync_debug_mode": 0, "set_sync_debug_mode": 0, "reset_peak_memory_stats": 0, "empty_cache": 0}
    results |= {"CUDAGraph": graph, "Stream": stream, "current_stream": stream}
    for name, result in results.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, result=result: result)
    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, nothing)


def captured(*layers):
    """A module whose next call replays, the same without graphs, and an input."""
    module = nn.Sequential(*layers)
    eager, x = copy.deepcopy(module), torch.randn(2, 3)
    graph_module(module, pytest.fail, device="cpu")
    for _ in range(CALLS):
        module(x)
    assert len(module._compiled_call_impl.graphs) == 1
    return module, eager, x


@pytest.mark.usefixtures("still_cuda")
def test_a_replay_gives_copies_of_outputs_and_gradients():
    module, eager, x = captured(nn.Linear(3, 4), nn.Tanh())
    for _ in range(2):
        output = module(x)
        assert torch.equal(output, eager(x))
        output.sum().backward()
        output.detach().zero_()
    (graph,) = module._compiled_call_impl.graphs.values()
    for parameter, gradient in zip(module.parameters(), graph.gradients, strict=True):
        assert parameter.grad.shape == parameter.shape and parameter.grad.data_ptr() != gradient.data_ptr()


@pytest.mark.usefixtures("still_cuda")
def test_threads_take_turns():
    """A second thread's input is not written over that of a replay that still runs."""
    with torch.no_grad():
        module, eager, x = captured(nn.Linear(3, 4))
    (graph,) = module._compiled_call_impl.graphs.values()

    def replay():
        time.sleep(0.05)
        graph.outputs[0].copy_(eager(graph.given))

    graph.forward_graph, images = SimpleNamespace(replay=replay), [x + 1, x + 2, x + 3]
    with ThreadPoolExecutor(len(images)) as threads:
        outputs = list(threads.map(torch.no_grad()(module.__call__), images))
    for image, output in zip(images, outputs, strict=True):
        assert torch.equal(output, eager(image))


@pytest.mark.usefixtures("still_cuda")
def test_a_stream_has_graphs_of_its_own(monkeypatch):
    """As replays on two streams run at the same time, on the same memory."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    assert _modes(torch.device("cuda", 1))[-1] == "stream of cuda:1"
    assert _modes(torch.device("cpu"))[-1] is None


@pytest.mark.usefixtures("still_cuda")
def test_until_its_backward_the_memory_of_a_call_is_left_alone():
    module, _, x = captured(nn.Linear(3, 4))
    first = module(x)
    assert first.grad_fn.name() != module(x).grad_fn.name() == "AddmmBackward0"
    first.sum().backward()
    second = module(x)
    assert second.grad_fn.name() == first.grad_fn.name()
    with pytest.raises(RuntimeError, match="second backward through a call"):
        first.sum().backward()
    del second
    assert module(x).grad_fn.name() == first.grad_fn.name()


@pytest.mark.usefixtures("still_cuda")
def test_outputs_that_a_graph_cannot_give_are_refused():
    class Two(nn.Linear):
        def forward(self, x):
            return {"map": super().forward(x)}

    told = []
    module = Two(3, 4)
    graph_module(module, told.append, device="cpu")
    call(module, CALLS + 1)
    assert len(told) == 1 and "returns a dict; expected a tensor, or a list of them" in told[0]


@pytest.mark.usefixtures("still_cuda")
def test_a_graph_that_would_fill_the_memory_is_refused(monkeypatch):
    told = []
    module = nn.Linear(3, 4)
    graph_module(module, told.append, device="cpu")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (9, 100))
    call(module, CALLS + 1)
    assert len(told) == 1 and "OutOfMemoryError: a graph would keep" in told[0]
