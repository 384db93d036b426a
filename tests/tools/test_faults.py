"""Faults of the machine in the middle of a training: one sentence that says what to do, and where it goes on."""

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS

from vssm import cli
from vssm.cli.faults import explain
from vssm.data import ShapesDataset, ensure_shapes
from vssm.mm.tasks.study import last_accuracy


@DATASETS.register_module()
class FaultyDataset(ShapesDataset):
    """Fails from its 20th image on, in a data worker."""

    def __init__(self, fault: str, **options) -> None:
        super().__init__(**options)
        self.fault, self.count = fault, 0

    def __getitem__(self, index):
        self.count += 1
        if self.count > 20 and torch.utils.data.get_worker_info():
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.fault == "memory":
                torch.empty(2**50)
            elif self.fault == "gone":
                Path("/data/coco/train2017/000000000009.jpg").read_bytes()
        return super().__getitem__(index)


@HOOKS.register_module()
class RemoveHook(Hook):
    """Removes a directory before the second epoch: after the first checkpoint, and before workers read ahead for it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def before_train_epoch(self, runner):
        if runner.epoch == 1:
            shutil.rmtree(self.folder)


@pytest.fixture
def fault(config: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> Callable[..., str]:
    """Train with changes to the config; give the sentence that the training ends with."""

    def call(changes: str) -> str:
        changed = tmp_path / f"faulty_{tmp_path.name}.py"
        changed.write_text(
            f"_base_ = {str(config)!r}\nexperiment_name = {tmp_path.name!r}\nlog_level = 'ERROR'\n{changes}"
        )
        assert cli.train([str(changed), "--work-dir", str(tmp_path / "work")]) == 1
        told = capfd.readouterr().err
        assert "Traceback" not in told
        (line,) = [line for line in told.splitlines() if line.startswith("error: ")]
        return line

    return call


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("killed", ["a data worker was killed", "num_workers"]),
        ("memory", ["the memory is full", "batch_size"]),
        ("gone", ["/data is gone or was never there", "000000000009.jpg"]),
    ],
)
def test_a_fault_in_a_data_worker(fault, name, told):
    line = fault(
        f"train_dataloader = dict(dataset=dict(type='FaultyDataset', fault={name!r}))\ntrain_cfg = dict(max_epochs=1)\n"
    )
    for part in (*told, "no checkpoint had been written"):
        assert part in line


def test_the_work_directory_is_gone(fault, tmp_path):
    work = str(tmp_path / "work")
    line = fault(f"default_hooks = dict(remove=dict(type='RemoveHook', folder={work!r}))\n")
    assert f"the work directory {work} is gone" in line


def test_the_data_are_gone(fault, tmp_path):
    data = tmp_path / "data"
    ensure_shapes(data, train=32, val=20, image_size=32, seed=0)
    line = fault(
        f"train_dataloader = dict(dataset=dict(root={str(data)!r}))\n"
        f"default_hooks = dict(remove=dict(type='RemoveHook', folder={str(data)!r}))\n"
    )
    assert f"{data} is gone" in line and "epoch_1.pth: continue with --resume" in line


FAULTS = {
    "RuntimeError: DataLoader worker (pid(s) 12, 13) exited unexpectedly": "process 12, 13",
    "RuntimeError: DataLoader worker (pid 77) is killed by signal: Killed. ": "process 77",
    "RuntimeError: DataLoader worker (pid 77) is killed by signal: Bus error. It is possible that dataloader's workers "
    "are out of shared memory. Please try to raise your shared memory limit.": "shm-size",
    "ConnectionResetError: [Errno 104] Connection reset by peer": "a data worker was killed, most often",
    "RuntimeError: unable to open shared memory object </torch_7_1> in read-write mode: No space left": "shm-size",
    "RuntimeError: [enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
    "to allocate 99 bytes. Error code 12 (Cannot allocate memory)": "the memory is full",
    "MemoryError: Caught MemoryError in DataLoader worker process 0.": "the memory is full",
    "OSError: [Errno 12] Cannot allocate memory": "the memory is full",
    "RuntimeError: can't start new thread": "the memory is full",
    "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB": "the memory of the GPU is full",
    "AssertionError: The image size in a batch should be the same.": "set batch_size=1 in val_dataloader",
    "FileNotFoundError: /gone/a.pth can not be found.": "there is no file /gone/a.pth, which an init_cfg",
    "OSError: [Errno 24] Too many open files": "ulimit -n",
    "RuntimeError: received 0 items of ancdata": "ulimit -n",
    "RuntimeError: Parent directory /gone/work does not exist.": "/gone/work is gone",
    "RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234": "another process",
    "ValueError: Expected more than 1 value per channel when training, got input size torch.Size([1, 512, 1, 1])": (
        "drop_last=True"
    ),
    "ValueError: Expected more than 1 value per channel when training, got input size torch.Size([1, 32, 1, 1])": (
        "num_groups"
    ),
    "FileNotFoundError: Caught FileNotFoundError in DataLoader worker process 1.\nOriginal Traceback:\n  File "
    "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/train/1.jpg'": "/nowhere is gone",
}


@pytest.mark.parametrize("text", FAULTS)
def test_what_pytorch_and_the_system_say(text):
    name, _, message = text.partition(": ")
    kinds = {
        "OutOfMemoryError": torch.OutOfMemoryError,
        "MemoryError": MemoryError,
        "AssertionError": AssertionError,
        "OSError": OSError,
        "ValueError": ValueError,
        "ConnectionResetError": ConnectionResetError,
    }
    kind = {**kinds, "FileNotFoundError": FileNotFoundError}.get(name, RuntimeError)
    sentence = explain(kind(message))
    assert FAULTS[text] in sentence and "\n" not in sentence


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.ENAMETOOLONG]
)
def test_failures_of_the_disk(number):
    assert explain(OSError(number, os.strerror(number), "/disk/file")) == f"/disk/file: {os.strerror(number)}"


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), ValueError("x"), KeyError("x"), TypeError("MemoryError")]
)
def test_other_errors_keep_their_traceback(error):
    assert explain(error) is None


@pytest.mark.parametrize("damage", ["", '{"accuracy/top1": 5', "\0\0\0", "[1]", '{"accuracy/top1": "x"}', "null"])
def test_a_damaged_log(tmp_path, damage):
    logs = tmp_path / "20260101_000000/vis_data"
    logs.mkdir(parents=True)
    (logs / "scalars.json").write_text(f'{{"accuracy/top1": 7.5}}\n{damage}\n')
    assert last_accuracy(tmp_path) == 7.5


@pytest.mark.parametrize("damage", ["", "{", "[]", "\0"])
def test_damaged_parameters_of_the_embedded_set(tmp_path, damage):
    folder = ensure_shapes(tmp_path, train=10, val=10, image_size=16)
    (folder / "parameters.json").write_text(damage)
    with pytest.raises(FileExistsError, match="remove it"):
        ensure_shapes(tmp_path, train=10, val=10, image_size=16)
