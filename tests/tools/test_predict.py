"""tools/predict.py and tools/demo.py, as a user calls them."""

import json
from pathlib import Path

import numpy
import pytest
import timm
import torch
from PIL import Image

from vssm.cli.prediction import load_predictor, predict_files
from vssm.data import BadImageError
from vssm.errors import ConfigError
from vssm.models import CheckpointError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def weights(tmp_path):
    """A Vim of 1000 classes in a file of weights."""
    path = tmp_path / "vim.pth"
    torch.save({"model": timm.create_model("vim_tiny").state_dict()}, path)
    return path


@pytest.fixture
def images(tmp_path):
    """Images of several kinds: colour, one channel, 16 bit, alpha."""
    noise = numpy.random.default_rng(0).integers(0, 255, (40, 60, 4), dtype=numpy.uint8)
    paths = [tmp_path / f"{name}.png" for name in ("colour", "grey", "deep", "clear")]
    arrays = noise[..., :3], noise[..., 0], noise[..., 0].astype(numpy.uint16) * 257, noise
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    return paths


def test_predict(run, weights, images, tmp_path):
    out = tmp_path / "picture.png"
    done = run(ROOT / "tools/predict.py", *images, "--model", "vim_tiny", "--checkpoint", weights, "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("%") == 5 * len(images) and str(out) in done.stdout
    assert Image.open(out).size[0] > 100


def test_labels(weights, images, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"name {i}" for i in range(1000)))
    predictor = load_predictor("vim_tiny", weights, labels)
    (result,) = predict_files(predictor, images[:1], tmp_path / "out.png")
    assert json.loads((tmp_path / "out.json").read_text())[0]["image"] == result["image"] == str(images[0])
    best, probability = result["classes"][0]
    assert best.startswith("name ") and 0 < probability < 1
    labels.write_text("one\ntwo")
    with pytest.raises(ConfigError, match="1000 classes, but there are 2 labels"):
        load_predictor("vim_tiny", weights, labels)


def test_failures(weights, images, tmp_path):
    with pytest.raises(ConfigError, match="did you mean vim_tiny"):
        load_predictor("vim_tinny", weights)
    with pytest.raises(ConfigError, match="which model"):
        load_predictor(None, weights)
    with pytest.raises(CheckpointError, match=r"vim\.pth"):
        load_predictor("vmamba_tiny", weights)
    images[0].write_bytes(images[0].read_bytes()[:100])
    with pytest.raises(BadImageError, match=r"colour\.png"):
        predict_files(load_predictor("vim_tiny", weights), images, tmp_path / "out.png")
    with pytest.raises(ConfigError, match="cannot be written"):
        predict_files(load_predictor("vim_tiny", weights), images[1:], images[1] / "out.png")


def test_demo(run, config, tmp_path):
    """The demo's steps on the small config; a checkpoint of a training then needs no --model."""
    work = tmp_path / "demo"
    done = run(ROOT / "tools/demo.py", "--config", config, "--work-dir", work)
    assert done.returncode == 0, done.stderr
    for part in ("accuracy of test_vit", "linear classifier", str(work / "predictions.png"), "step 12/12"):
        assert part in done.stdout
    assert Image.open(work / "predictions.png").size[0] > 100
    predictor = load_predictor(None, work / "epoch_3.pth")
    assert len(predictor.labels) == 10 and "star" in predictor.labels
    with pytest.raises(ConfigError, match="checkpoint of test_vit, not of vim_tiny"):
        load_predictor("vim_tiny", work / "epoch_3.pth")
