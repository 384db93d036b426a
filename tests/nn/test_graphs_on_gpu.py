"""A call that is replayed as a CUDA graph does what an eager one would, to the bit."""

import pytest
import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vssm.nn import graph_module
from vssm.nn.graphs import CALLS

pytestmark = pytest.mark.gpu


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


def test_checkpointing_is_right_whether_it_can_be_captured_or_not():
    """Newer versions of torch can: the backward draws the forward's random numbers again, inside its graph."""
    results, _ = trained_with_and_without_graphs("checkpoint")
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


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


def test_a_graph_for_which_memory_would_lack_is_not_made(monkeypatch):
    model, told = model_on_gpu(), []
    graph_module(model, told.append)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 1))
    trained(model, torch.bfloat16, images(4))
    assert len(told) == 1 and "a graph would keep" in told[0]
