"""Checkpoints: plain values, written whole, removed after their successor, and refused if they do not fit."""

import errno
import pickle
from pathlib import Path

import numpy
import pytest
import torch
from mmengine.logging import MessageHub

from vssm.errors import TrainingError
from vssm.files import replace_atomically
from vssm.inference import create_model, is_training, latest_checkpoint, read_checkpoint
from vssm.mm.runtime.checkpoint import check_bookkeeping
from vssm.models import CheckpointError

# What a checkpoint of a training holds beside its weights.
BOOKKEEPING = {
    "meta": {"backbone": {}, "epoch": 1, "iter": 4, "seed": 0},
    "message_hub": {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}},
}


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


def test_a_checkpoint_is_plain_and_whole(make_runner):
    runner = make_runner(default_hooks__checkpoint__max_keep_ckpts=1)
    runner.train()
    work_dir = Path(runner.work_dir)
    assert not list(work_dir.glob(".*.part"))
    assert [path.name for path in work_dir.glob("epoch_*.pth")] == ["epoch_2.pth"]
    assert len(list(work_dir.glob("best_*.pth"))) == 1
    checkpoint = torch.load(work_dir / "epoch_2.pth", weights_only=True)
    assert checkpoint["meta"]["backbone"]["name"] == "test_vit"
    assert checkpoint["meta"]["transform"] == {"type": "TimmTransform", "input_size": 32}
    assert len(checkpoint["meta"]["dataset_meta"]["classes"]) == 10
    assert len(checkpoint["message_hub"]["log_scalars"]["train/loss"]["values"]) == 8


def test_logs_are_short_in_memory_and_in_files(make_runner, monkeypatch):
    monkeypatch.setattr("vssm.mm.runtime.checkpoint.HISTORY", 5)
    runner = make_runner()
    runner.train()
    losses, _ = runner.message_hub.get_scalar("train/loss").data
    saved = torch.load(Path(runner.work_dir) / "epoch_2.pth", weights_only=True)["message_hub"]["log_scalars"]
    assert len(losses) == 5 and saved["train/loss"]["values"].tolist() == losses.tolist()


def test_nothing_is_removed_when_the_next_cannot_be_written(make_runner, monkeypatch):
    runner = make_runner(default_hooks__checkpoint__max_keep_ckpts=1)

    def replace(temporary: Path, final: Path) -> None:
        if final.name == "epoch_2.pth":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_atomically(temporary, final)

    monkeypatch.setattr("vssm.mm.runtime.runner.replace_atomically", replace)
    with pytest.raises(TrainingError, match=r"epoch_2.pth: No space left on device; earlier checkpoints"):
        runner.train()
    work_dir = Path(runner.work_dir)
    assert not list(work_dir.glob(".*.part"))
    read_checkpoint(work_dir / "epoch_1.pth")
    assert latest_checkpoint(work_dir) == work_dir / "epoch_1.pth"


def test_weights_that_are_not_finite_are_not_saved(make_runner):
    runner = make_runner(train_cfg__max_epochs=1)
    runner.train()
    with torch.no_grad():
        next(runner.model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"not finite.*last good checkpoint is .*epoch_1.pth"):
        runner.save_checkpoint(runner.work_dir, "epoch_2.pth")
    assert not (Path(runner.work_dir) / "epoch_2.pth").exists()


def test_latest_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "epoch_3.pth").touch()
    assert latest_checkpoint(tmp_path) == tmp_path / "epoch_3.pth"
    (tmp_path / "last_checkpoint").write_text("")  # killed while it was written
    assert latest_checkpoint(tmp_path) == tmp_path / "epoch_3.pth"
    (tmp_path / "epoch_2.pth").touch()
    (tmp_path / "last_checkpoint").write_text("/moved/since/epoch_2.pth")
    assert latest_checkpoint(tmp_path) == tmp_path / "epoch_2.pth"


def test_files_that_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.pth"
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_checkpoint(path)
    torch.save({"state_dict": Malicious()}, path)
    with pytest.raises(CheckpointError, match="code"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps({"state_dict": Malicious()}, protocol=2))
    with pytest.raises(CheckpointError, match=r"file\.pth"):
        read_checkpoint(path)
    assert not Path("touched").exists()
    torch.save({"state_dict": {"weight": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="damaged, incomplete"):
        read_checkpoint(path)
    path.write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=r"file\.pth"):
        read_checkpoint(path)


@pytest.mark.parametrize("backbone", [{"name": "test_vit"}, {"name": "vim_tiny", "depth": 1}])
def test_weights_alone_are_loaded_for_evaluation_and_not_resumed(make_runner, tmp_path, backbone):
    backbone = {**backbone, "num_classes": 10, "img_size": 32}
    weights = create_model(**backbone).state_dict()
    torch.save({"model": weights}, tmp_path / "weights.pth")
    runner = make_runner(model__backbone={"_delete_": True, **backbone}, load_from=str(tmp_path / "weights.pth"))
    runner.test()
    for name, value in runner.model.backbone.state_dict().items():
        assert torch.equal(value, weights[name])
    runner = make_runner(resume=True)
    with pytest.raises(CheckpointError, match="without --resume"):
        runner.train()


def test_a_checkpoint_of_another_model_is_refused_whole(make_runner, tmp_path):
    runner = make_runner()
    other = {f"backbone.{name}": value for name, value in runner.model.backbone.state_dict().items()}
    other["backbone.head.weight"] = torch.zeros(7, 64)
    other["backbone.extra"] = other.pop("backbone.head.bias")
    torch.save({"state_dict": other, **BOOKKEEPING}, tmp_path / "other.pth")
    before = runner.model.backbone.head.weight.clone()
    with pytest.raises(CheckpointError) as caught:
        runner.load_checkpoint(str(tmp_path / "other.pth"))
    for part in ("1 missing (backbone.head.bias)", "1 unexpected (backbone.extra)", "1 misshapen"):
        assert part in str(caught.value)
    assert torch.equal(runner.model.backbone.head.weight, before)


def test_mmengines_own_checkpoints_are_read_without_running_what_they_name(tmp_path):
    """As the official detectors are: logged values as NumPy arrays in objects that name functions by getattr."""
    hub = MessageHub.get_instance("test_foreign_checkpoint")
    hub.update_scalar("train/loss", numpy.float64(0.5))
    hub.update_info("iter", numpy.int64(3))
    weights = {"backbone.weight": torch.ones(2)}
    torch.save({"state_dict": weights, "message_hub": hub.state_dict(), "meta": {}}, tmp_path / "foreign.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "foreign.pth", weights_only=True)
    checkpoint = read_checkpoint(tmp_path / "foreign.pth")
    assert torch.equal(checkpoint["state_dict"]["backbone.weight"], weights["backbone.weight"])
    assert not is_training(checkpoint)
    assert not callable(checkpoint["message_hub"]["log_scalars"]["train/loss"])


def test_nothing_in_a_resumed_file_is_run_or_removed(make_runner, tmp_path):
    """mmengine would run meta.config as Python, and remove the best checkpoint that the file names, a folder too."""
    make_runner(train_cfg__max_epochs=1).train()
    first = make_runner(default_hooks__checkpoint__save_best="accuracy/top1")
    path = Path(first.work_dir) / "epoch_1.pth"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["meta"]["config"] = f"open({str(tmp_path / 'touched')!r}, 'w')"
    for kind in ("file", "folder"):
        (tmp_path / "precious" / kind).mkdir(parents=True)
        (tmp_path / "precious" / kind / "epoch_9.pth").touch()
        named = tmp_path / "precious" / kind / ("epoch_9.pth" if kind == "file" else "")
        checkpoint["message_hub"]["runtime_info"].update(best_ckpt=str(named), best_score=-1.0)
        torch.save(checkpoint, path)
        make_runner(default_hooks__checkpoint__save_best="accuracy/top1", resume=True, load_from=str(path)).train()
        assert list(Path(first.work_dir).glob("best_*"))
        assert (tmp_path / "precious" / kind / "epoch_9.pth").is_file() and not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("meta", "epoch", "1"),
        ("meta", "iter", -1),
        ("meta", "seed", [1]),
        ("message_hub", "log_scalars", {"loss": 3}),
        ("message_hub", "runtime_info", {"keep_ckpt_ids": ["../x"]}),
        ("message_hub", "log_scalars", [1]),
        ("message_hub", "resumed_keys", None),
    ],
)
def test_bookkeeping_of_another_shape_is_one_sentence(part, key, value, tmp_path):
    checkpoint = {**BOOKKEEPING, part: {**BOOKKEEPING[part], key: value}}
    check_bookkeeping(BOOKKEEPING, "good.pth")
    with pytest.raises(CheckpointError, match=rf"bad\.pth: {part}.* is not what tools/train\.py writes"):
        check_bookkeeping(checkpoint, "bad.pth")


@pytest.mark.parametrize("part", ["state_dict", "ema_state_dict"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda value: value * float("nan"), "holds NaN, infinite or complex values"),
        (lambda value: (100 * value).to(torch.int8), "1 whole numbers"),
        (lambda value: None, "1 missing"),
    ],
    ids=["NaN", "whole", "missing"],
)
def test_averaged_weights_have_to_fit_too(make_runner, part, change, told):
    """EMAHook exchanges them with the model's, and loads one of both without a look."""
    average = {"default_hooks__ema": {"type": "EMAHook", "momentum": 0.1}, "train_cfg__max_epochs": 1}
    runner = make_runner(**average)
    runner.train()
    file = Path(runner.work_dir) / "epoch_1.pth"
    checkpoint = read_checkpoint(file)
    name = next(name for name in checkpoint[part] if name.endswith("backbone.head.weight"))
    checkpoint[part][name] = change(checkpoint[part][name])
    checkpoint[part] = {name: value for name, value in checkpoint[part].items() if value is not None}
    torch.save(checkpoint, file)
    with pytest.raises(CheckpointError, match=told):
        make_runner(**average, load_from=str(file), resume=True).train()


def test_a_checkpoint_that_is_gone_by_the_time_it_is_looked_at_is_left_out(tmp_path):
    """A training removes its old ones while another program looks for the newest."""
    (tmp_path / "epoch_2.pth").touch()
    (tmp_path / "epoch_3.pth").symlink_to(tmp_path / "gone")
    assert latest_checkpoint(tmp_path) == tmp_path / "epoch_2.pth"
