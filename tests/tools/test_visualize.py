"""tools/visualize.py, as a user calls it."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from vssm.models import Vim
from vssm.scan import order_names

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools/visualize.py"


def test_orders(run, tmp_path):
    done = run(TOOL, "orders", "--grid", "3", "4", "--out", "pictures")
    assert done.returncode == 0, done.stderr
    assert sorted(path.stem for path in (tmp_path / "pictures").iterdir()) == order_names()
    done = run(TOOL, "orders", "windows(2)", "hilbert")
    assert done.stdout.split() == ["orders/windows_2.png", "orders/hilbert.png"]


def test_committed_pictures_are_of_every_order():
    pictures = {path.stem for path in (ROOT / "docs/orders").glob("*.png")}
    assert pictures >= set(order_names()), "draw them: python tools/visualize.py orders --out docs/orders"
    large = [path.name for path in (ROOT / "docs").rglob("*.png") if path.stat().st_size > 100_000]
    assert not large, "every clone of the repository has them"


@pytest.fixture
def checkpoint(run, config):
    """Of a small model, trained for one epoch along a Hilbert curve, by a config that says so."""
    options = ["model.backbone.name=vim_tiny", "model.backbone.scan_order=hilbert", "train_cfg.max_epochs=1"]
    options += ["model.backbone.embed_dim=32", "model.backbone.depth=2", "model.backbone.patch_size=8"]
    options += ["model.backbone.stride=8"]
    done = run(ROOT / "tools/train.py", config, "--work-dir", "work", "--cfg-options", *options)
    assert done.returncode == 0, done.stderr
    return config.parent / "work/epoch_1.pth"


def test_models(run, checkpoint, tmp_path):
    done = run(TOOL, "erf", "--checkpoint", checkpoint, "--images", "2", "--out", "erf.png")
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "erf.png").width > 500, "before and after"
    done = run(TOOL, "attention", "--checkpoint", checkpoint, "--place", "0.2", "0.7", "--out", "attention.png")
    assert done.returncode == 0, done.stderr
    assert "MiB" in done.stdout
    assert Image.open(tmp_path / "attention.png").width > 1000, "image, four directions, and their sum"


def test_weights_without_a_training(run, tmp_path):
    torch.save(Vim(embed_dim=192, depth=24).state_dict(), tmp_path / "vim.pth")
    done = run(TOOL, "attention", "--model", "vim_tiny", "--checkpoint", "vim.pth", "--layer", "2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "attention.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("orders", "hilbrt"), "error: no scan order is named 'hilbrt'; known: "),
        (("erf",), "error: which model? Name it with --model"),
        (("erf", "--model", "vim_tyni"), "error: there is no model called 'vim_tyni'; did you mean"),
        (("attention", "--model", "vim_tiny", "--layer", "99"), "error: layer is 99; this model has 24 scans"),
    ],
)
def test_failures_are_one_sentence(run, arguments, told):
    done = run(TOOL, *arguments)
    assert done.returncode == 1 and told in done.stderr and "Traceback" not in done.stderr
