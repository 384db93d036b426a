"""MESA: from which epoch on, drawn towards which weights, and how much."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from torch import nn

from vssm.errors import ConfigError
from vssm.mm.runtime.mesa import MESAHook, MESALoss
from vssm.mm.tasks.classifier import Teacher

AVERAGES = {"default_hooks__ema": {"type": "EMAHook", "momentum": 0.1}}
MESA = {**AVERAGES, "default_hooks__mesa": {"type": "MESAHook", "factor": 1.5, "begin": 1}}


def test_loss_is_the_cross_entropy_with_the_averages_probabilities() -> None:
    torch.manual_seed(0)
    averaged = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 5))
    loss, images = MESALoss(averaged, factor=1.5), torch.randn(3, 3, 2, 2)
    logits = torch.randn(3, 5, requires_grad=True)
    said = averaged[2](images.flatten(1)).softmax(-1)  # without dropout
    torch.testing.assert_close(loss(images, logits), -1.5 * (said * logits.log_softmax(-1)).sum(1).mean())
    loss(images, logits).backward()
    torch.testing.assert_close(logits.grad, 1.5 * (logits.softmax(-1) - said).detach() / 3)
    assert averaged[2].weight.grad is None
    assert deepcopy(loss) is loss


class Watch(Hook):
    """What the second loss should be, from the averages as they are at each step."""

    priority = "LOW"

    def __init__(self) -> None:
        self.expected: list[float] = []
        self.distance: list[float] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        averages = next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model.module
        images = runner.model.data_preprocessor(dict(data_batch))["inputs"]
        with torch.no_grad():
            logits = deepcopy(runner.model.backbone)(images)
            said = deepcopy(averages.backbone).eval()(images).softmax(-1)
        self.expected.append(-1.5 * (said * logits.log_softmax(-1)).sum(1).mean().item())
        pairs = zip(averages.parameters(), runner.model.parameters(), strict=True)
        self.distance.append(sum((a - b).abs().sum().item() for a, b in pairs))


def test_a_training_learns_from_its_averages_from_an_epoch_on(make_runner) -> None:
    runner = make_runner(**MESA)
    runner.register_hook(watch := Watch())
    names = set(runner.model.state_dict())
    runner.train()
    logged, _ = runner.message_hub.get_scalar("train/loss_second").data
    assert len(logged) == 4 and len(watch.expected) == 8, "four steps an epoch, the first epoch without"
    torch.testing.assert_close(logged.tolist(), watch.expected[4:], rtol=1e-4, atol=1e-5)
    assert all(distance > 0 for distance in watch.distance[2:]), "the averages are not the weights"
    assert set(runner.model.state_dict()) == names
    losses, labels = (runner.message_hub.get_scalar(f"train/{name}").data[0] for name in ("loss", "loss_labels"))
    torch.testing.assert_close(losses[4:], labels + logged)


def test_it_changes_the_training_from_that_epoch_on(make_runner) -> None:
    losses = []
    for options in (AVERAGES, MESA):
        runner = make_runner(**options)
        runner.train()
        hub = runner.message_hub
        of_labels = hub.get_scalar("train/loss").data[0].tolist()[:4]
        if options is MESA:
            losses.append(of_labels + hub.get_scalar("train/loss_labels").data[0].tolist())
        else:
            losses.append(hub.get_scalar("train/loss").data[0].tolist())
    assert losses[0][:5] == pytest.approx(losses[1][:5]), "until the first step with it"
    assert losses[0][6:] != pytest.approx(losses[1][6:], rel=1e-6)


def test_a_resumed_training_goes_on_to_the_same_weights(stopped, make_runner) -> None:
    """In the middle of an epoch that has the loss."""
    resumed = stopped(step=6, **MESA)
    resumed.train()
    whole = make_runner(resume=False, load_from=None)
    whole.train()
    for (name, one), want in zip(resumed.model.state_dict().items(), whole.model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, want, msg=name)


def test_a_training_without_averages_is_refused(make_runner) -> None:
    with pytest.raises(ConfigError, match=r"this training averages none: expected default_hooks\.ema="):
        make_runner(**{**MESA, "default_hooks__ema": None}).train()


@pytest.mark.parametrize(
    "model", [nn.Linear(1, 1), SimpleNamespace(second_loss=None, teacher=Teacher)], ids=["no classifier", "a teacher"]
)
def test_models_that_it_does_not_fit_are_refused(model: object) -> None:
    runner = SimpleNamespace(hooks=[EMAHook()], model=model)
    with pytest.raises(ConfigError, match="for an ImageClassifier without a teacher: leave it out"):
        MESAHook(factor=1.0).before_train(runner)


@pytest.mark.parametrize("begin", [0, 1])
def test_a_loss_that_never_begins_is_told(make_runner, caplog, begin):
    by_steps = {"_delete_": True, "by_epoch": False, "max_iters": 1}
    runner = make_runner(**MESA, default_hooks__mesa__begin=begin, train_cfg=by_steps)
    runner.logger.addHandler(caplog.handler)
    runner.train()
    assert ("mesa.begin is 1, and the training ends after epoch 1: its loss is never added" in caplog.text) == begin
