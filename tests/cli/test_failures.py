"""Foreseeable failures of the tools: one sentence, a non-zero exit code, no traceback."""

import argparse
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_training import write_config

from vssm import cli
from vssm.cli.prediction import _json_list
from vssm.cli.run import run_tool
from vssm.files import unfinished, write_atomically, written_whole

_count = itertools.count()


@pytest.fixture(scope="module")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture
def config_file(tmp_path: Path, shapes_root: Path) -> Path:
    return write_config(tmp_path / "small.py", shapes_root)


@pytest.fixture
def fails(config_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> Callable[..., str]:
    """Train with some options, expecting a failure; returns its sentence."""

    def call(*options: object) -> str:
        # mmengine keeps the logs of a process by this name.
        named = tmp_path / "named.py"
        named.write_text(f"_base_ = {str(config_file)!r}\nexperiment_name = 'test_cli_{next(_count)}'\n")
        assert cli.train([str(named), "--work-dir", str(tmp_path / "work"), *map(str, options)]) == 1
        told = capfd.readouterr().err
        assert "Traceback" not in told
        (line,) = [line for line in told.splitlines() if line.startswith("error: ")]
        return line

    return call


def test_work_directory_that_cannot_be_written(fails, tmp_path):
    (tmp_path / "file").touch()
    assert "file/work cannot be written" in fails("--work-dir", tmp_path / "file/work")


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("train_cfg.max_epoch=2", "did you mean 'max_epochs'"),
        ("model.backbone.name=vim_tinny", "did you mean vim_tiny"),
        ("train_dataloader.dataset.spilt=train", "did you mean 'split'"),
        ("train_dataloader.dataset.train=1", "at least one image of each"),
        ("train_dataloader.dataset.transform.re_porb=0.5", "re_porb"),
        ("train_dataloader.batch_size=33", "there are 32 images, fewer than one batch of 33"),
        ("model.backbone.num_classes=3", "the data have 10 classes, but the model 3"),
    ],
)
def test_bad_configs(fails, option, told):
    assert told in fails("--cfg-options", option)


@pytest.mark.parametrize(("backend", "package"), [("WandbVisBackend", "wandb"), ("ClearMLVisBackend", "clearml")])
def test_a_logger_that_is_not_installed(fails, monkeypatch, backend, package):
    monkeypatch.setitem(sys.modules, package, None)
    told = fails("--cfg-options", f"visualizer.vis_backends.0.type={backend}")
    assert package in told and "install" in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works on a GPU")
def test_fp16_needs_a_gpu(fails):
    assert "--amp bf16" in fails("--amp", "fp16")


def test_resume_from_files_that_are_no_checkpoints(fails, tmp_path):
    path = tmp_path / "broken.pth"
    path.write_bytes(b"PK\x03\x04 broken")
    assert "broken.pth" in fails("--resume", path)
    assert "absent.pth" in fails("--resume", tmp_path / "absent.pth")
    torch.save({"weight": torch.zeros(1)}, path)
    assert "without --resume" in fails("--resume", path)


def test_an_image_that_cannot_be_read_is_named(fails, config_file, tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            (folder / "broken.png").write_bytes(b"not an image")
    text = config_file.read_text()
    start = text.index("_set = "), text.index("model = ")
    images = (
        f"_set = dict(type='ImageDataset', root={str(tmp_path / 'images')!r}, num_classes=10, "
        "transform=dict(type='TimmTransform', input_size=32))\n"
    )
    config_file.write_text(text[: start[0]] + images + text[start[1] :])
    for workers in (0, 1):
        told = fails("--cfg-options", f"train_dataloader.num_workers={workers}", "train_dataloader.batch_size=2")
        assert "broken.png cannot be read as an image" in told


def test_a_second_training_in_a_directory_says_what_it_replaces(config_file, tmp_path, capfd):
    for told in (False, True):
        name = f"experiment_name=test_cli_{next(_count)}"
        options = [
            "--work-dir",
            str(tmp_path / "work"),
            "--no-validate",
            "--cfg-options",
            "train_cfg.max_epochs=1",
            name,
        ]
        assert cli.train([str(config_file), *options]) == 0
        output = capfd.readouterr()
        assert ("epoch_1.pth is of an earlier training" in output.out + output.err) is told


def test_options_that_are_no_pairs(config_file, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.train([str(config_file), "--cfg-options", "train_cfg.max_epochs"])
    assert caught.value.code == 2
    assert "takes KEY=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [ValueError("a bug"), ImportError("cannot import name 'x'"), ModuleNotFoundError("no vssm.x", name="vssm.x")],
)
def test_unforeseen_errors_keep_their_traceback(error):
    def bug(_: object) -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        run_tool(bug, None)


def test_a_package_that_is_not_there_is_named(capfd):
    def asks(_: object) -> None:
        raise ModuleNotFoundError("No module named 'wandb'", name="wandb.sdk")

    assert run_tool(asks, None) == 1
    assert capfd.readouterr().err == "error: the package wandb is needed here and is not installed: pip install wandb\n"


def test_a_time_limit_ends_a_tool_as_ctrl_c_does(tmp_path, capfd):
    """What is done is written, and no half of a file is left."""

    def work(_: object) -> None:
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL  # which would end the tests
        with _json_list(tmp_path / "found.json") as write, written_whole(tmp_path / "model.onnx") as temporary:
            write({"image": "a.jpg"})
            temporary.touch()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)

    before = signal.getsignal(signal.SIGTERM)
    assert run_tool(work, argparse.Namespace()) == 128 + signal.SIGTERM
    assert capfd.readouterr().err == "error: interrupted\n"
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
    assert json.loads((tmp_path / "found.json").read_text()) == [{"image": "a.jpg"}]
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_of_several_processes_dies_of_a_time_limit(capfd):
    """It may wait for another outside of Python, where it would never hear of the signal."""

    def work(_: object) -> None:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    assert run_tool(work, argparse.Namespace(launcher="pytorch")) == 0


def test_two_that_write_one_file_do_not_share_its_beginning(tmp_path, monkeypatch):
    """Processes in two containers may have the same number."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert unfinished(tmp_path / "a.csv") != unfinished(tmp_path / "a.csv")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "a.csv", "\ud800")
    assert not list(tmp_path.iterdir())
