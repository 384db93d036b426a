"""Which calls of a module are replayed as CUDA graphs; on a GPU, that a replay is what an eager call would be."""

import copy
import random

import pytest
import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vssm.nn import graph_module, run_fast
from vssm.nn.graphs import CALLS, MOST


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


def test_hooks_are_called_and_told_once(recorded):
    module, told = graphed()
    call(module, CALLS)
    seen = []
    hook = module[0].register_forward_hook(lambda *_: seen.append(1))
    call(module, 2)
    assert len(seen) == 2 and recorded.replayed == 1
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


# On a GPU.


@pytest.fixture
def same_sums(monkeypatch):
    """Of torch's own operations those that sum in the same order every time."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with sdpa_kernel(SDPBackend.MATH):
        yield


DEPTH = {"vim_tiny": {"depth": 4}, "vmamba_tiny": {"depths": (1, 1, 1, 1)}, "test_vit": {}}


def model_on_gpu(name="vim_tiny", **more):
    torch.manual_seed(0)
    size = {} if name == "vmamba_tiny" else {"img_size": 64}
    return timm.create_model(name, num_classes=5, **{"drop_path_rate": 0.3, **DEPTH[name], **size, **more}).cuda()


def trained(model, dtype, batches, accumulate=1):
    """Losses of a training, and what it leaves of the model and of the random numbers."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16, init_scale=2.0**8)
    losses = []
    for step, x in enumerate(batches):
        torch.manual_seed(step)
        with torch.autocast("cuda", dtype, enabled=dtype is not None):
            logits = model(x)
        loss = nn.functional.cross_entropy(logits.float(), torch.arange(len(x), device="cuda") % 5)
        scaler.scale(loss / accumulate).backward()
        losses.append(loss.detach())
        if (step + 1) % accumulate == 0:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return torch.stack(losses), model.state_dict(), torch.rand(3, device="cuda")


def images(count, batch=6, last=None):
    generator = torch.Generator().manual_seed(1)
    sizes = [batch] * (count - 1) + [last or batch]
    return [torch.randn(size, 3, 64, 64, generator=generator).cuda() for size in sizes]


def graphs_of(model):
    return model._compiled_call_impl.graphs


@pytest.mark.gpu
@pytest.mark.usefixtures("same_sums")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("vim_tiny", torch.bfloat16),
        ("vim_tiny", torch.float16),
        ("vmamba_tiny", torch.bfloat16),
        ("vmamba_tiny", None),
        ("test_vit", torch.float16),
    ],
    ids=str,
)
def test_trainings_are_the_same_with_and_without_graphs(name, dtype):
    """With drop path, clipping, accumulated gradients, a validation within, and a last batch of another size."""
    results = []
    for with_graphs in (False, True):
        model, told = model_on_gpu(name), []
        if with_graphs:
            graph_module(model, told.append)
        results.append([])
        for accumulate in (1, 2):
            results[-1].append(trained(model.train(), dtype, images(8, last=4), accumulate))
            with torch.no_grad():
                results[-1].append([model.eval()(x) for x in images(4)])
    assert not told
    assert len(graphs_of(model)) == 2
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.usefixtures("same_sums")
def test_batch_norms_count_and_average_every_step_once():
    results = []
    for with_graphs in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.2), nn.Flatten(), nn.LazyLinear(5))
        model = model.cuda()
        model(images(1)[0])
        if with_graphs:
            graph_module(model, pytest.fail)
        results.append(trained(model, torch.bfloat16, images(7)))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    assert graphs_of(model)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_predictions_are_the_same_after_every_change_of_the_weights(mode):
    model, eager = model_on_gpu().eval(), model_on_gpu().eval()
    graph_module(model, pytest.fail)
    for change in range(3):
        with torch.no_grad():
            for parameters in zip(model.parameters(), eager.parameters(), strict=True):
                for parameter in parameters:
                    if change == 1:
                        parameter.mul_(1.01)
                    elif change == 2:
                        parameter.data = parameter.data * 0.99
        with mode(), torch.autocast("cuda", torch.bfloat16):
            for x in images(CALLS + 2, last=3):
                assert torch.equal(model(x), eager(x))
    assert graphs_of(model)


class Faulty(nn.Module):
    """Does in its forward what cannot be captured."""

    def __init__(self, fault):
        super().__init__()
        self.fault, self.norm, self.drop = fault, nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        x = self.drop(self.norm(self.layer(x)))
        if self.fault == "reads a number":
            x = x * float(x.detach().abs().max() > 0)
        elif self.fault == "waits":
            torch.cuda.synchronize()
        elif self.fault == "checkpoint":
            x = torch.utils.checkpoint.checkpoint(self.drop, x, use_reentrant=False)
        elif self.fault == "raises" and torch.cuda.is_current_stream_capturing():
            raise ValueError("not in a capture")
        return self.drop(x)


def trained_with_and_without_graphs(layer):
    """What a training leaves in both cases, and what was told of the graphs."""
    results, told = [], []
    for with_graphs in (False, True):
        torch.manual_seed(0)
        model = Faulty(layer).cuda()
        if with_graphs:
            graph_module(model, told.append)
        optimizer, losses = torch.optim.AdamW(model.parameters()), []
        generator = torch.Generator().manual_seed(1)
        for _ in range(CALLS + 3):
            loss = model(torch.randn(8, 4, generator=generator).cuda()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        results.append((torch.stack(losses), model.state_dict(), torch.rand(3, device="cuda")))
    return results, told


@pytest.mark.gpu
@pytest.mark.parametrize("fault", ["reads a number", "waits", "raises"])
def test_after_a_failed_capture_the_training_is_as_if_there_had_been_none(fault):
    stream = torch.cuda.current_stream()
    results, told = trained_with_and_without_graphs(fault)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    assert len(told) == 1 and "training of the Faulty runs eagerly" in told[0]
    assert torch.cuda.current_stream() == stream
    # And other modules can still be captured.
    model = model_on_gpu()
    graph_module(model, pytest.fail)
    trained(model, torch.bfloat16, images(4))
    assert graphs_of(model)


@pytest.mark.gpu
def test_checkpointing_is_right_whether_it_can_be_captured_or_not():
    """Newer versions of torch can: the backward draws the forward's random numbers again, inside its graph."""
    results, _ = trained_with_and_without_graphs("checkpoint")
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.usefixtures("same_sums")
def test_forwards_whose_backwards_come_later_keep_their_activations():
    model, eager = model_on_gpu(drop_path_rate=0.0), model_on_gpu(drop_path_rate=0.0)
    graph_module(model, pytest.fail)
    trained(model, None, images(4))
    eager.load_state_dict(model.state_dict())
    first, second = images(2)
    for each in (model, eager):
        outputs = each(first), each(second)
        (outputs[0].square().sum() + outputs[1].sum()).backward()
    for one, other in zip(model.parameters(), eager.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    with pytest.raises(RuntimeError, match="second backward"):
        loss = model(first).sum()
        loss.backward(retain_graph=True)
        loss.backward()


@pytest.mark.gpu
def test_a_graph_for_which_memory_would_lack_is_not_made(monkeypatch):
    model, told = model_on_gpu(), []
    graph_module(model, told.append)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 1))
    trained(model, torch.bfloat16, images(4))
    assert len(told) == 1 and "a graph would keep" in told[0]
