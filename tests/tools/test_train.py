"""tools/train.py and tools/test.py, as a user calls them."""

import re
import resource
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def sentence(done) -> str:
    """The one line that a foreseeable failure prints on stderr."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def test_train_then_evaluate(train, run, config, tmp_path):
    work = tmp_path / "work"
    options = ("--amp", "bf16", "--seed", 3, "--auto-scale-lr", "--cfg-options", "train_cfg.max_epochs=2")
    done = train("--work-dir", work, *options)
    assert done.returncode == 0, done.stderr
    log = done.stdout + done.stderr
    assert "images_per_second" in log and "Scaling the original LR by 0.5" in log
    assert list(work.glob("*/vis_data/events.out.tfevents*"))
    validated = float(re.findall(r"Epoch\(val\) \[2\].*accuracy/top1: ([\d.]+)", log)[-1])

    done = run(ROOT / "tools/test.py", config, work / "epoch_2.pth", "--work-dir", tmp_path / "test")
    assert done.returncode == 0, done.stderr
    tested = float(re.findall(r"accuracy/top1: ([\d.]+)", done.stdout + done.stderr)[-1])
    assert tested == validated

    _a_full_disk_loses_nothing(train, work)


def _a_full_disk_loses_nothing(train, work):
    """A limit on file sizes simulates a full disk: the next checkpoint cannot be written."""
    before = sorted(path.name for path in work.glob("*.pth"))
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, unlimited[1]))
    try:
        told = sentence(train("--work-dir", work, "--resume"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert "cannot write the checkpoint" in told and "epoch_3.pth" in told and "intact" in told
    assert sorted(path.name for path in work.glob("*.pth")) == before
    torch.load(work / "epoch_2.pth", weights_only=True)
