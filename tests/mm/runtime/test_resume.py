"""Resume means resume: whole files only, the config's schedules, and every change said."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from small_training import logged

from vssm.cli.training import set_resume
from vssm.errors import ConfigError
from vssm.inference import latest_checkpoint
from vssm.inference.saved import NOTE, checkpoints_of
from vssm.mm.runtime.lock import LOCK, locked
from vssm.models import CheckpointError


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


SCORES = [40.0, 60.0, 30.0, 20.0, 10.0, 5.0]


class Scores(Hook):
    """Other scores in place of the evaluation's, by epoch."""

    priority = "HIGHEST"

    def after_val_epoch(self, runner, metrics):
        metrics["accuracy/top1"] = SCORES[runner.iter // 4 - 1]


@pytest.mark.parametrize("step", [9, 13])  # after the best score, and after one that is not
def test_what_goes_by_scores_goes_on_to_the_same_end(stopped, make_runner, step):
    """A checkpoint is older than the validation after it, and early stopping began anew."""
    options = {
        "train_cfg__max_epochs": 6,
        "custom_hooks": [
            Scores(),
            {"type": "EarlyStoppingHook", "monitor": "accuracy/top1", "rule": "greater", "patience": 3},
        ],
        "param_scheduler": [
            {"type": "ReduceOnPlateauLR", "monitor": "accuracy/top1", "patience": 0, "rule": "greater"}
        ],
    }
    whole = make_runner(**options)
    whole.train()
    assert whole.iter == 5 * 4
    rest = stopped(step=step, **options)
    rest.train()
    ends = [(runner.iter, runner.optim_wrapper.param_groups[0]["lr"]) for runner in (whole, rest)]
    assert ends[0] == ends[1]
    assert rest.message_hub.runtime_info["best_score"] == 60.0
    assert set(logged(Path(rest.work_dir))[-1]) == {"accuracy/top1", "accuracy/top5", "data_time", "time", "step"}


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
    found = rest.model.state_dict()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(found[name], value), name


def test_the_gradients_of_an_accumulation_go_on(stopped, make_runner, caplog):
    """Three steps change the weights, and the checkpoint is written after the fourth."""
    options = {"optim_wrapper__accumulative_counts": 3, "train_cfg__max_epochs": 3}
    whole = make_runner(**options)
    whole.train()
    rest = stopped(step=5, **options)
    rest.train()
    found = rest.model.state_dict()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(found[name], value), name

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


def test_without_averages_a_training_goes_on_from_its_own_weights(stopped, caplog):
    """A checkpoint has the averages in their place: they were trained on with the sums of other weights."""
    averages = {"type": "EMAHook", "momentum": 0.05}
    rest = stopped(step=5, default_hooks__ema=averages, then={"default_hooks__ema": None})
    saved = torch.load(rest._load_from, weights_only=True)
    rest.logger.addHandler(caplog.handler)
    rest.register_hook(seen := Weights())
    rest.train()
    assert "of a training that averages its weights, and this one does not (default_hooks.ema)" in caplog.text
    for name, value in seen.before.items():
        assert torch.equal(value, saved["ema_state_dict"][f"module.{name}"])
    assert any(not torch.equal(value, saved["state_dict"][name]) for name, value in seen.before.items())


class Weights(Hook):
    """Those before the first step."""

    before = None

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.before = self.before or {name: value.clone() for name, value in runner.model.state_dict().items()}
