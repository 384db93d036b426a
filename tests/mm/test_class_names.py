"""Classes are the training's, in validation, tests, checkpoints and after a resume, whatever the folders hold."""

import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from vssm import cli
from vssm.cli.arguments import test_parser as parser_of_test
from vssm.cli.prediction import load_predictor
from vssm.cli.training import run_test
from vssm.errors import ConfigError

_count = itertools.count()
# Plain colours, which a linear model of the first pixels tells apart at once.
COLOURS = {"Ant": (250, 0, 0), "ant": (0, 250, 0), "bee": (0, 0, 250), "cow": (250, 250, 0)}
CONFIG = """
_base_ = {base!r}
_set = dict(_delete_=True, type='ImageDataset', root={root!r},
            transform=dict(type='TimmTransform', input_size=32, crop_pct=1.0))
model = dict(backbone=dict(num_classes={count}, drop_rate=0.0))
train_dataloader = dict(batch_size=4, dataset=dict(split='train', **_set))
val_dataloader = dict(batch_size=2, dataset=dict(split='val', **_set))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=6)
optim_wrapper = dict(_delete_=True, optimizer=dict(type='AdamW', lr=3e-3))
param_scheduler = None
default_hooks = dict(checkpoint=dict(save_best=None))
experiment_name = {name!r}
"""


def draw(folder: Path, names: Sequence[str], count: int = 8) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (32, 32), COLOURS[name]).save(folder / name / f"{number}.png")


@pytest.fixture
def write(config_file: Path, tmp_path: Path) -> Callable[..., Path]:
    """A config of a training on the folders of a root."""

    def call(root: Path, count: int = 4) -> Path:
        name = f"classes_{next(_count)}"
        path = tmp_path / f"{name}.py"
        path.write_text(CONFIG.format(base=str(config_file), root=str(root), name=name, count=count))
        return path

    return call


def evaluate(config: Path, checkpoint: Path, folder: Path) -> float:
    arguments = [str(config), str(checkpoint), "--work-dir", str(folder)]
    return run_test(parser_of_test().parse_args(arguments))["accuracy/top1"]


@pytest.fixture
def trained(write: Callable, tmp_path: Path) -> Path:
    """A training whose validation set lacks a class in the middle, and has a hidden folder."""
    draw(tmp_path / "root/train", COLOURS)
    draw(tmp_path / "root/val", ["Ant", "bee", "cow"], count=2)
    (tmp_path / "root/val/ant").mkdir()
    shutil.copytree(tmp_path / "root/val/cow", tmp_path / "root/val/.ipynb_checkpoints")
    assert cli.train([str(write(tmp_path / "root")), "--work-dir", str(tmp_path / "work")]) == 0
    return tmp_path / "work"


def test_one_training_and_all_that_follows(trained: Path, write: Callable, tmp_path: Path, capfd) -> None:
    saved = torch.load(trained / "epoch_6.pth", weights_only=True)
    assert list(saved["meta"]["classes"]) == sorted(COLOURS) == saved["meta"]["dataset_meta"]["classes"]

    # Evaluation by name, on sets that lack classes, and that have others.
    config = write(tmp_path / "root")
    assert evaluate(config, trained / "epoch_6.pth", tmp_path / "test") == 100.0
    draw(tmp_path / "other/val", ["cow"])
    assert evaluate(write(tmp_path / "other"), trained / "epoch_6.pth", tmp_path / "test") == 100.0
    (tmp_path / "other/val/cow").rename(tmp_path / "other/val/elk")
    with pytest.raises(ConfigError, match=r"other/val has 1 classes that are none of the training's: elk"):
        evaluate(write(tmp_path / "other"), trained / "epoch_6.pth", tmp_path / "test")

    # Weights without names.
    (tmp_path / "root/val/ant").rmdir()
    backbone = {name.removeprefix("backbone."): value for name, value in saved["state_dict"].items()}
    torch.save({"model": backbone}, tmp_path / "weights.pth")
    with pytest.raises(
        ConfigError, match=r"root/val has 3 classes .*and the model 4 whose names are not known.*dataset\.classes="
    ):
        evaluate(config, tmp_path / "weights.pth", tmp_path / "test")
    options = [str(config), str(tmp_path / "weights.pth"), "--work-dir", str(tmp_path / "test")]
    named = "test_dataloader.dataset.classes=[Ant,ant,bee,cow]"
    assert run_test(parser_of_test().parse_args([*options, "--cfg-options", named]))["accuracy/top1"] == 100.0

    # A checkpoint of another order of the same names, as of another version: its own order counts on resume.
    saved["meta"]["classes"] = saved["meta"]["dataset_meta"]["classes"] = list(COLOURS)[::-1]
    for key in ("backbone.head.weight", "backbone.head.bias"):
        saved["state_dict"][key] = saved["state_dict"][key].flip(0)
    torch.save(saved, tmp_path / "turned.pth")
    assert evaluate(config, tmp_path / "turned.pth", tmp_path / "test") == 100.0
    options = ["--cfg-options", "train_cfg.max_epochs=7", "--resume", str(tmp_path / "turned.pth")]
    config = write(tmp_path / "root")
    assert cli.train([str(config), "--work-dir", str(tmp_path / "resumed"), *options]) == 0
    assert load_predictor(None, tmp_path / "resumed/epoch_7.pth").labels == tuple(COLOURS)[::-1]
    assert evaluate(config, tmp_path / "resumed/epoch_7.pth", tmp_path / "test") == 100.0

    # Resumed on other classes.
    (tmp_path / "root/train/cow").rename(tmp_path / "root/train/elk")
    capfd.readouterr()
    assert cli.train([str(write(tmp_path / "root")), "--work-dir", str(tmp_path / "resumed"), *options]) == 1
    assert "none of the training's: elk" in capfd.readouterr().err


def test_images_that_cannot_be_read_stop_before_the_first_step(write: Callable, tmp_path: Path, capfd) -> None:
    draw(tmp_path / "root/train", ["Ant", "ant"])
    draw(tmp_path / "root/val", ["Ant", "ant"])
    file = tmp_path / "root/val/ant/3.png"
    for content, told in ((file.read_bytes()[:70], "cannot be read"), (b"version https://git-lfs.github.com/x", "LFS")):
        file.write_bytes(content)
        assert cli.train([str(write(tmp_path / "root")), "--work-dir", str(tmp_path / "work")]) == 1
        error = capfd.readouterr().err
        assert "val/ant/3.png cannot be read as an image" in error and told in error and "Traceback" not in error
        assert not list((tmp_path / "work").glob("*.pth"))


def test_validation_with_an_unknown_class_stops_before_the_first_step(write: Callable, tmp_path: Path, capfd) -> None:
    draw(tmp_path / "root/train", ["Ant", "ant"])
    draw(tmp_path / "root/val", ["Ant", "bee"])
    assert cli.train([str(write(tmp_path / "root")), "--work-dir", str(tmp_path / "work")]) == 1
    told = capfd.readouterr()
    assert "root/val has 1 classes that are none of the training's: bee; those are Ant, ant" in told.err
    assert "epoch 1" not in told.out and not list((tmp_path / "work").glob("*.pth"))


def test_more_classes_than_the_model_are_named(write: Callable, tmp_path: Path, capfd) -> None:
    draw(tmp_path / "root/train", COLOURS)
    draw(tmp_path / "root/val", COLOURS)
    assert cli.train([str(write(tmp_path / "root", count=3)), "--work-dir", str(tmp_path / "work")]) == 1
    told = capfd.readouterr().err
    assert "the data have 4 classes, but the model 3: set model.backbone.num_classes=4" in told
    assert "Ant, ant, bee, cow" in told and "root/train" in told
