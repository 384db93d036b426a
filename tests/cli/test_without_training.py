"""Commands that do not train work where the training packages are not installed; the others name the install line."""

import subprocess
import sys
from pathlib import Path

import numpy
import timm
import torch
from PIL import Image

from vssm import cli

BLOCKED = ("mmengine", "mmcv", "mmdet", "mmseg", "albumentations", "tensorboard", "rich")
COMMANDS = ("train", "test", "predict", "visualize", "benchmark", "export", "hub", "compare", "demo")
# Each with its exit code, and a part of what it prints.
CALLS = [
    *((name, ["--help"], 0, "usage") for name in COMMANDS),
    ("visualize", ["orders", "hilbert", "--grid", "4", "5"], 0, "orders/hilbert.png"),
    ("visualize", ["erf", "--model", "test_vit", "--checkpoint", "weights.pth", "--images", "1"], 0, "erf.png"),
    ("predict", ["image.png", "--model", "test_vit", "--checkpoint", "weights.pth"], 0, "predictions.json"),
    ("benchmark", ["models", "test_vit", "--sizes", "160", "--batch", "1", "--dtype", "float32"], 0, "test_vit"),
    ("train", ["small.py"], 1, "need mmengine: pip install"),
    ("test", ["small.py", "x.pth"], 1, "need mmengine: pip install"),
    ("compare", ["small.py"], 1, "need mmengine: pip install"),
    ("demo", [], 1, "need mmengine: pip install"),
    ("benchmark", ["heads", "small.py"], 1, "need mmengine: pip install"),
    ("predict", ["image.png", "--model", "small.py", "--out", "other.png"], 1, "need mmengine: pip install"),
]
CALL_ALL = """
import contextlib, io, sys
sys.modules.update(dict.fromkeys({blocked}))  # any import of one now fails
from vssm import cli

for name, arguments, code, told in {calls}:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            found = getattr(cli, name)(arguments)
        except SystemExit as end:
            found = end.code
    assert (found or 0) == code and told in out.getvalue(), (name, arguments, found, out.getvalue())
"""


def test_commands_without_the_training_packages(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "weights.pth")
    noise = numpy.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=numpy.uint8)
    Image.fromarray(noise).save(tmp_path / "image.png")
    command = [sys.executable, "-c", CALL_ALL.format(blocked=BLOCKED, calls=CALLS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_each_tool_is_one_command() -> None:
    root = Path(__file__).resolve().parents[2]
    tools = {path.stem for path in (root / "tools").glob("*.py") if "from vssm.cli import" in path.read_text()}
    assert tools == set(COMMANDS) and all(callable(getattr(cli, name)) for name in tools)
