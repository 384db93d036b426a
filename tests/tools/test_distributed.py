"""Two processes train as one process does with the same total batch."""

from pathlib import Path

import pytest
import torch
from small_training import ROOT, logged

# What is random for each image or each process is off; the order of the images is the same.
PLAIN = [
    "model.backbone.drop_path_rate=0.0",
    "model.data_preprocessor.mixup=None",
    "train_dataloader.num_workers=0",
    "train_dataloader.dataset.transform.is_training=False",
    "train_dataloader.dataset.transform.auto_augment=None",
    "train_cfg.max_epochs=2",
]


def losses(work_dir: Path) -> list[float]:
    return [values["loss"] for values in logged(work_dir) if "loss" in values]


def train_as_one_and_as_two(run, config, tmp_path, **environment):
    """Run both trainings, and compare their losses and weights."""
    one, two = tmp_path / "one", tmp_path / "two"
    tool = ROOT / "tools/train.py"
    options = ("--cfg-options", *PLAIN, "train_dataloader.batch_size=8")
    done = run(tool, config, "--work-dir", one, *options, **environment)
    assert done.returncode == 0, done.stderr
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, tool, config)
    options = ("--launcher", "pytorch", "--cfg-options", *PLAIN, "train_dataloader.batch_size=4")
    done = run(*launch, "--work-dir", two, *options, **environment)
    assert done.returncode == 0, done.stderr

    expected, found = losses(one), losses(two)
    assert len(expected) == 8
    assert found == pytest.approx(expected, abs=2e-5)
    ends = [torch.load(path / "epoch_2.pth", weights_only=True)["state_dict"] for path in (one, two)]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_two_processes_train_as_one(run, config, tmp_path):
    train_as_one_and_as_two(run, config, tmp_path, CUDA_VISIBLE_DEVICES="")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_as_one(run, config, tmp_path):
    train_as_one_and_as_two(run, config, tmp_path)


def test_launcher_that_did_not_start_the_process(train, tmp_path):
    done = train("--work-dir", tmp_path / "work", "--launcher", "pytorch")
    assert done.returncode == 1
    assert "torchrun" in done.stderr and "Traceback" not in done.stderr
