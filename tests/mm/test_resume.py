"""Resume means resume: whole files only, the config's schedules, and every change said."""

import math
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook

from vssm.cli.training import set_resume
from vssm.errors import ConfigError
from vssm.inference import latest_checkpoint
from vssm.inference.saved import NOTE, checkpoints_of
from vssm.mm.runtime.lock import LOCK, locked
from vssm.models import CheckpointError

RATE = 1e-3
COSINE = [{"type": "CosineAnnealingLR", "eta_min": 0.0, "begin": 0, "end": 4, "convert_to_iter_based": True}]


class Stop(Exception):
    """Stands for a kill: nothing is saved after it."""


class StopAt(Hook):
    """Ends a training before a validation, or before a step."""

    priority = "HIGHEST"

    def __init__(self, step: int | None = None, validation: int | None = None) -> None:
        self.step, self.validation = step, validation

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.step:
            raise Stop

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.validation:
            raise Stop


class Rates(Hook):
    """The rate of each step."""

    def __init__(self) -> None:
        self.seen = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen[runner.iter] = runner.optim_wrapper.optimizer.param_groups[0]["lr"]


@pytest.fixture
def stopped(make_runner):
    """Train a while, end without a word, and build a runner that goes on with other options."""

    def train(step: int | None = None, validation: int | None = None, then: dict | None = None, **options):
        first = make_runner(resume=False, load_from=None, **options)
        first.register_hook(StopAt(step, validation))
        with pytest.raises(Stop):
            first.train()
        newest = latest_checkpoint(first.work_dir)
        return make_runner(resume=True, load_from=str(newest), **(then or {}))

    return train


@pytest.fixture
def trained(make_runner) -> Path:
    """The work directory of a complete training: epoch_1.pth, epoch_2.pth and the best."""
    runner = make_runner()
    runner.train()
    return Path(runner.work_dir)


def resumed(work_dir: Path, resume: str) -> tuple[Path | None, str | None]:
    config = Config({"work_dir": str(work_dir)})
    warning = set_resume(config, resume)
    return config.load_from and Path(config.load_from), warning


# --- which file ---


def test_a_file_without_an_optimiser_is_refused(trained, make_runner):
    (best,) = trained.glob("best_*.pth")
    with pytest.raises(CheckpointError) as caught:
        make_runner(resume=True, load_from=str(best)).train()
    told = str(caught.value)
    for part in (f"{best} lacks the state of the optimiser", "epoch_2.pth", f"load_from={best}", "without --resume"):
        assert part in told
    make_runner(load_from=str(best), resume=False, train_cfg__max_epochs=1).train()


@pytest.mark.parametrize(("part", "told"), [("optimizer", "optimiser"), ("message_hub", "counters")])
def test_whatever_lacks_is_named(part, told, trained, make_runner, tmp_path):
    checkpoint = torch.load(trained / "epoch_1.pth", weights_only=True)
    checkpoint.pop(part)
    torch.save(checkpoint, tmp_path / "partial.pth")
    with pytest.raises(CheckpointError, match=rf"partial\.pth lacks .*{told}"):
        make_runner(resume=True, load_from=str(tmp_path / "partial.pth")).train()


DAMAGES = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "overwritten": lambda data: data[:1000] + b"\0" * 4096 + data[5096:],
    "no checkpoint": lambda data: b"<html>not found</html>",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_file_gives_way_to_the_one_before_it(damage, trained):
    newest, older = trained / "epoch_2.pth", trained / "epoch_1.pth"
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    path, warning = resumed(trained, "auto")
    assert path == older and "epoch_2.pth" in warning and "epoch_1.pth" in warning
    with pytest.raises(CheckpointError, match=r"epoch_2\.pth.*--resume .*epoch_1\.pth"):
        resumed(trained, str(newest))
    older.unlink()
    with pytest.raises(CheckpointError, match=r"epoch_2\.pth"):
        resumed(trained, "auto")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_newest_checkpoint_that_is_no_file(make, trained):
    make(trained / "epoch_3.pth")
    (trained / NOTE).write_text("epoch_3.pth")
    path, warning = resumed(trained, "auto")
    assert path == trained / "epoch_2.pth" and "epoch_3.pth" in warning


def test_nothing_yet(tmp_path):
    assert resumed(tmp_path, "auto") == (None, None)
    with pytest.raises(CheckpointError, match=r"absent\.pth"):
        resumed(tmp_path, str(tmp_path / "absent.pth"))


NOTES = {
    "binary": bytes(range(256)) * 3,
    "empty": b"",
    "long": b"x" * 100_000,
    "a null byte": b"epoch_2.pth\0",
    "another place": b"/moved/since/epoch_2.pth\n",
    "a file that is gone": b"epoch_7.pth",
    "a directory": b"..",
}


@pytest.mark.parametrize("note", NOTES)
def test_a_note_of_any_content(note, tmp_path):
    for number in (1, 2):
        (tmp_path / f"epoch_{number}.pth").touch()
        os.utime(tmp_path / f"epoch_{number}.pth", (number, number))
    (tmp_path / NOTE).write_bytes(NOTES[note])
    assert [path.name for path in checkpoints_of(tmp_path)] == ["epoch_2.pth", "epoch_1.pth"]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_note_that_is_no_file(make, tmp_path):
    (tmp_path / "epoch_1.pth").touch()
    make(tmp_path / NOTE)
    assert latest_checkpoint(tmp_path) == tmp_path / "epoch_1.pth"


# --- what goes on ---


def test_a_validation_that_was_interrupted_is_made_up_for(stopped, make_runner, tmp_path):
    whole = make_runner(work_dir=str(tmp_path / "whole"))
    whole.train()
    rest = stopped(validation=4, work_dir=str(tmp_path / "stopped"))
    validated = []
    rest.register_hook(type("Count", (Hook,), {"before_val": lambda self, runner: validated.append(runner.iter)})())
    rest.train()
    assert validated == [4, 8]
    best = [runner.message_hub.runtime_info["best_score"] for runner in (whole, rest)]
    assert best[0] == best[1] and list((tmp_path / "stopped").glob("best_*"))


def test_a_validation_that_was_complete_is_not_repeated(stopped):
    rest = stopped(step=5)
    validated = []
    rest.register_hook(type("Count", (Hook,), {"before_val": lambda self, runner: validated.append(runner.iter)})())
    rest.train()
    assert validated == [8]


def test_unfinished_files_of_a_killed_training_are_removed(make_runner):
    runner = make_runner(train_cfg__max_epochs=1)
    left = Path(runner.work_dir) / ".epoch_1.pth.part"
    left.touch()
    runner.train()
    assert not left.exists()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_training_by_steps_goes_on_to_the_same_numbers(stopped, make_runner, accumulation):
    options = {
        "train_cfg": {"_delete_": True, "by_epoch": False, "max_iters": 9, "val_interval": 3},
        "train_dataloader__sampler": {"type": "InfiniteSampler", "shuffle": True},
        "train_dataloader__num_workers": 1,
        "train_dataloader__dataset__transform": {"type": "TimmTransform", "input_size": 32, "is_training": True},
        "model__backbone__drop_path_rate": 0.3,
        "default_hooks__checkpoint": {"by_epoch": False, "interval": 2},
        "optim_wrapper__accumulative_counts": accumulation,
        "log_processor": {"by_epoch": False},
    }
    whole = make_runner(**options)
    whole.train()
    expected = whole.message_hub.get_scalar("train/loss").data[0]
    rest = stopped(step=5, **options)
    rest.train()
    assert list(rest.message_hub.get_scalar("train/loss").data[0]) == list(expected)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(rest.model.state_dict()[name], value), name


def test_the_gradients_of_an_accumulation_go_on(stopped, make_runner, caplog):
    """Three steps change the weights, and the checkpoint is written after the fourth."""
    options = {"optim_wrapper__accumulative_counts": 3, "train_cfg__max_epochs": 3}
    whole = make_runner(**options)
    whole.train()
    rest = stopped(step=5, **options)
    rest.train()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(rest.model.state_dict()[name], value), name

    changed = stopped(step=5, **options, then={"train_dataloader__batch_size": 16})
    changed.logger.addHandler(caplog.handler)
    changed.train()
    assert "the gradients of the steps since the last change of the weights are lost" in caplog.text


@pytest.mark.parametrize("gradients", [{"nowhere": torch.ones(1)}, {"backbone.head.bias": "x"}, [1]])
def test_gradients_of_another_shape(trained, make_runner, gradients):
    checkpoint = torch.load(trained / "epoch_1.pth", weights_only=True)
    assert checkpoint["gradients"] == {}
    torch.save({**checkpoint, "gradients": gradients}, trained / "epoch_1.pth")
    with pytest.raises(CheckpointError, match=r"epoch_1\.pth: the gradient of"):
        make_runner(resume=True, load_from=str(trained / "epoch_1.pth")).train()


# --- the config's schedule, moved to the point in training ---


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


# --- one training in a work directory ---


def in_child(work_dir: Path, ready: Path) -> int:
    number = os.fork()
    if not number:
        with locked(work_dir):
            ready.touch()
            time.sleep(60)
        os._exit(0)
    while not ready.exists():
        time.sleep(0.02)
    return number


def test_two_trainings_in_one_directory(tmp_path):
    other = in_child(tmp_path, tmp_path / "ready")
    try:
        with (
            pytest.raises(ConfigError, match=rf"a training is running in .*process {other} on .*--work-dir"),
            locked(tmp_path),
        ):
            pass
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    assert str(other) in (tmp_path / LOCK).read_text()  # what it leaves behind locks nothing
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    with locked(tmp_path):
        pass


def test_a_disk_without_locks(tmp_path, monkeypatch, caplog):
    def lockf(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("vssm.mm.runtime.lock.fcntl.lockf", lockf)
    with locked(tmp_path):
        assert "make sure that no other training writes there" in caplog.text
