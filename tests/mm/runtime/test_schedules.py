"""A resumed training: the config's schedules count, moved to the point in training, and every change is said."""

import math

import pytest
import torch
from mmengine.hooks import Hook

from vssm.errors import ConfigError
from vssm.mm.runtime.config import without_validation
from vssm.models import CheckpointError

RATE = 1e-3
COSINE = [{"type": "CosineAnnealingLR", "eta_min": 0.0, "begin": 0, "end": 4, "convert_to_iter_based": True}]


class Rates(Hook):
    """The rate of each step."""

    def __init__(self) -> None:
        self.seen = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen[runner.iter] = runner.optim_wrapper.optimizer.param_groups[0]["lr"]


def cosine(part: float) -> float:
    return RATE * (1 + math.cos(math.pi * part)) / 2


@pytest.mark.parametrize(
    ("then", "told", "iters", "steps"),
    [
        ({}, None, 8, 4),
        ({"train_dataloader__batch_size": 16}, "8 images per step, now 16", 4, 2),
        ({"train_dataloader__batch_size": 4}, "8 images per step, now 4", 16, 8),
        ({"train_dataloader__dataset__train": 64}, "32 images of the data set, now 64", 16, 8),
        ({"optim_wrapper__accumulative_counts": 2}, "1 steps of gradient accumulation, now 2", 8, 4),
    ],
)
def test_schedules_in_epochs_are_moved_to_the_point_in_training(stopped, caplog, then, told, iters, steps):
    rest = stopped(step=9, train_cfg__max_epochs=4, param_scheduler=COSINE, then=then)
    rates = Rates()
    rest.register_hook(rates)
    rest.logger.addHandler(caplog.handler)
    rest.logger.setLevel("INFO")
    rest.train()
    assert list(rates.seen) == list(range(iters, 4 * steps))
    for step, rate in rates.seen.items():
        assert rate == pytest.approx(cosine(step / (4 * steps)), rel=1e-6, abs=1e-9), step
    assert (told or "resumed at epoch 2 of 4") in caplog.text
    assert told or "the checkpoint's training had" not in caplog.text


def test_another_number_of_processes_counts_like_another_batch(stopped, monkeypatch, caplog):
    rest = stopped(step=9, train_cfg__max_epochs=4, param_scheduler=COSINE)
    monkeypatch.setattr("vssm.mm.runtime.resume.get_world_size", lambda: 2)
    rest.logger.addHandler(caplog.handler)
    rest.train()
    assert "1 processes, now 2" in caplog.text and "8 images per step, now 16" in caplog.text


def test_other_rates_and_more_epochs_in_the_config_count(stopped, caplog):
    longer = [{**COSINE[0], "end": 8}]
    rest = stopped(
        step=9,
        train_cfg__max_epochs=4,
        param_scheduler=COSINE,
        then={"train_cfg__max_epochs": 8, "param_scheduler": longer, "optim_wrapper__optimizer__lr": 3 * RATE},
    )
    rates = Rates()
    rest.register_hook(rates)
    rest.train()
    assert rates.seen[8] == pytest.approx(3 * cosine(8 / 32), rel=1e-6)
    assert list(rates.seen) == list(range(8, 32))


def test_a_schedule_that_ends_before_the_training_is_told(stopped, caplog):
    rest = stopped(step=5, train_cfg__max_epochs=4, param_scheduler=COSINE, then={"train_cfg__max_epochs": 6})
    rest.logger.addHandler(caplog.handler)
    rest.train()
    assert "the schedules of param_scheduler end at step 16 of 24" in caplog.text


def test_validations_that_never_begin_are_told(make_runner, caplog):
    runner = make_runner(train_cfg__max_epochs=1, train_cfg__val_begin=2)
    runner.logger.addHandler(caplog.handler)
    runner.train()
    assert "train_cfg.val_begin is 2, and the training ends at 1: it is never validated" in caplog.text
    assert "default_hooks.checkpoint.save_best is 'accuracy/top1', and without a validation there are" in caplog.text


def test_what_goes_by_scores_needs_a_validation(make_runner, small_config, caplog):
    without_validation(small_config)
    plateau = {"type": "ReduceOnPlateauLR", "monitor": "loss", "rule": "less"}
    runner = make_runner(train_cfg__max_epochs=1, param_scheduler=plateau)
    runner.logger.addHandler(caplog.handler)
    runner.train()
    assert "monitor of ReduceOnPlateauLR in param_scheduler is 'loss', and without a validation" in caplog.text
    assert "save_best" not in caplog.text


STEPS = {"_delete_": True, "by_epoch": False, "max_iters": 2, "val_interval": 2}


def test_schedules_by_epochs_of_a_training_by_steps_are_refused(make_runner):
    """The rate never changed: with a warm-up it stayed near 0."""
    schedule = [{"type": "LinearLR", "start_factor": 0.01, "end": 2, "by_epoch": False}, {**COSINE[0]}]
    runner = make_runner(train_cfg={**STEPS}, param_scheduler=schedule)
    runner.train()
    assert runner.iter == 2
    schedule[1]["convert_to_iter_based"] = False
    with pytest.raises(
        ConfigError, match=r"param_scheduler.1 \(CosineAnnealingLR\) counts epochs, and train_cfg counts"
    ):
        make_runner(train_cfg={**STEPS}, param_scheduler=schedule).train()


@pytest.mark.parametrize("by_epoch", [True, False])
def test_checkpoints_that_wait_for_the_end_are_told(make_runner, caplog, by_epoch):
    runner = make_runner(train_cfg={**STEPS}, default_hooks__checkpoint__by_epoch=by_epoch)
    runner.logger.addHandler(caplog.handler)
    runner.train()
    assert ("default_hooks.checkpoint counts epochs, and train_cfg counts steps" in caplog.text) == by_epoch


def test_a_complete_training_says_that_nothing_is_left(trained, make_runner, caplog):
    runner = make_runner(resume=True, load_from=str(trained / "epoch_2.pth"))
    runner.logger.addHandler(caplog.handler)
    runner.train()
    assert "nothing is left to train" in caplog.text


@pytest.mark.parametrize(
    "schedule",
    [
        [{"type": "LinearLR", "start_factor": 0.01, "end": 1, "convert_to_iter_based": True}, COSINE[0]],
        [
            {"type": "LinearLR", "start_factor": 0.01, "end": 3, "by_epoch": False},
            {"type": "MultiStepLR", "milestones": [1, 2]},
        ],
        [{"type": "PolyLR", "power": 0.9, "end": 7, "by_epoch": False}],
        [{"type": "ReduceOnPlateauLR", "monitor": "accuracy/top1", "patience": 0, "rule": "greater", "threshold": 50}],
    ],
    ids=["cosine", "steps", "poly", "plateau"],
)
def test_an_unchanged_schedule_goes_on_to_the_same_rates(stopped, make_runner, schedule):
    options = {"train_cfg__max_epochs": 3, "param_scheduler": schedule}
    whole, rates = make_runner(**options), [Rates(), Rates()]
    whole.register_hook(rates[0])
    whole.train()
    rest = stopped(step=9, **options)
    rest.register_hook(rates[1])
    rest.train()
    assert rates[1].seen == {step: rate for step, rate in rates[0].seen.items() if step >= 8}


def test_another_optimiser_is_refused(stopped):
    sgd = {"_delete_": True, "type": "SGD", "lr": 0.1}
    with pytest.raises(CheckpointError, match="holds the state of AdamW, and the config's optimiser is SGD"):
        stopped(step=5, then={"optim_wrapper__optimizer": sgd}).train()


def test_a_training_that_counts_otherwise_is_refused(stopped):
    by_steps = {"_delete_": True, "by_epoch": False, "max_iters": 9, "val_interval": 3}
    with pytest.raises(ConfigError, match="counts epochs, and train_cfg counts steps"):
        stopped(step=5, then={"train_cfg": by_steps}).train()


def test_other_classes_are_refused(trained, make_runner):
    checkpoint = torch.load(trained / "epoch_1.pth", weights_only=True)
    names = list(checkpoint["meta"]["dataset_meta"]["classes"])
    checkpoint["meta"]["dataset_meta"]["classes"] = names[::-1]
    torch.save(checkpoint, trained / "epoch_1.pth")
    with pytest.raises(ConfigError, match=f"'{names[-1]}' there is '{names[0]}' here"):
        make_runner(resume=True, load_from=str(trained / "epoch_1.pth")).train()


@pytest.mark.parametrize("seed", [None, 5])
def test_the_seed(stopped, caplog, seed):
    """Without one in the config the checkpoint's counts, also for the order of the images; another one is told."""
    rest = stopped(step=5, randomness={"seed": 3}, then={"randomness": {"seed": seed}})
    rest.logger.addHandler(caplog.handler)
    rest.train()
    assert rest.seed == (3 if seed is None else 5)
    assert rest.train_dataloader.batch_sampler.sampler.seed == rest.seed
    assert ("had the seed 3, now 5" in caplog.text) == (seed is not None)
