"""Kills small trainings at random moments, lets them go on, and counts what went wrong: python tests/kills.py.

A third of the kills are SIGTERM, the others SIGKILL. After each, no process of the training may be left, and every
checkpoint must be readable. Each training that reaches its end, after however many kills, must have the weights, the
losses of all steps and the scores of a training that was not interrupted, bit for bit.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402

from vssm.inference import read_checkpoint  # noqa: E402
from vssm.models import CheckpointError  # noqa: E402

CONFIG = """
_base_ = {base!r}
_set = dict(root={data!r}, train=48, val=20, image_size={size})
train_dataloader = dict(batch_size=8, num_workers=2, dataset=_set)
val_dataloader = dict(batch_size=10, num_workers=1, dataset=_set)
test_dataloader = val_dataloader
{changes}
"""
BY_EPOCH = """
train_cfg = dict(max_epochs=4, val_interval=1)
default_hooks = dict(logger=dict(interval=1))
"""
AVERAGED = "default_hooks['ema'] = dict(_delete_=True, type='EMAHook', momentum=0.1)\n"
BY_STEPS = """
train_cfg = dict(max_iters=24, val_interval=6)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=4))
"""
TASKS = {
    "classification": ("classification/vim/vim_demo_shapes.py", 64, BY_EPOCH + AVERAGED),
    "detection": ("detection/efficientvmamba/retinanet_efficientvmamba_demo_shapes.py", 96, BY_EPOCH),
    "segmentation": ("segmentation/vmamba/upernet_vmamba_demo_shapes.py", 96, BY_STEPS),
}
# Seconds within which all processes of a killed training must be gone.
GONE_WITHIN = 10.0


@dataclasses.dataclass
class Counts:
    """What happened in one task."""

    kills: Counter = dataclasses.field(default_factory=Counter)
    completed: int = 0
    left_over: int = 0
    unreadable: int = 0
    different: int = 0

    def __str__(self) -> str:
        kills = ", ".join(f"{number} {name}" for name, number in sorted(self.kills.items()))
        return (
            f"killed {sum(self.kills.values())} times ({kills}); {self.left_over} processes left over; "
            f"{self.unreadable} unreadable checkpoints; {self.completed} trainings completed, {self.different} of them "
            "different from one that was not interrupted"
        )


def start(*options: object, log: Path) -> subprocess.Popen:
    """Start tools/train.py, which prints into a file."""
    command = [sys.executable, str(ROOT / "tools/train.py"), *map(str, options)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    return subprocess.Popen(command, stdout=log.open("a"), stderr=subprocess.STDOUT, env=environ)


def descendants(process: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    try:
        text = "".join(path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children"))
    except OSError:
        return []
    children = [int(child) for child in text.split()]
    return [*children, *(each for child in children for each in descendants(child))]


def is_alive(process: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def outcome(work: Path) -> dict:
    """The last losses, scores and weights of a training."""
    found = {}
    for log in sorted(work.glob("*/vis_data/scalars.json")):
        for line in log.read_text().splitlines():
            values = json.loads(line)
            names = ("loss", "accuracy/top1", "coco/bbox_mAP", "mIoU")
            found.update({(name, values["step"]): values[name] for name in names if name in values})
    newest = (work / "last_checkpoint").read_text()
    return {**found, **read_checkpoint(work / Path(newest).name)["state_dict"]}


def is_same(one: dict, other: dict) -> bool:
    """Whether two trainings had the same outcome; scores that are not numbers count as equal."""
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else str(value) == str(other[key])
        for key, value in one.items()
    )


def kill_once(process: subprocess.Popen, signum: int, counts: Counts, work: Path) -> None:
    """Kill a training, and look at what it leaves behind."""
    tree = descendants(process.pid)
    process.send_signal(signum)
    process.wait(60)
    counts.kills[signal.Signals(signum).name] += 1
    deadline = time.monotonic() + GONE_WITHIN
    while any(map(is_alive, tree)) and time.monotonic() < deadline:
        time.sleep(0.05)
    counts.left_over += sum(map(is_alive, tree))
    for path in work.glob("*.pth"):
        try:
            read_checkpoint(path)
        except CheckpointError:
            counts.unreadable += 1


def kill_test(
    task: tuple[str, int, str],
    folder: Path,
    kills: int,
    random_moments: random.Random,
    signals: tuple[int, ...] = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM),
    start: Callable[..., subprocess.Popen] = start,
) -> Counts:
    """Kill a training of a task a number of times, from its first import to its end, with these signals in turn."""

    def train(work: Path) -> subprocess.Popen:
        return start(config, "--work-dir", work, "--resume", log=folder / f"{work.name}.log")

    base, size, changes = task
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "small.py"
    text = CONFIG.format(base=str(ROOT / "configs" / base), data=str(folder / "data"), size=size, changes=changes)
    config.write_text(text)
    began = time.monotonic()
    if train(folder / "whole").wait(600):
        raise SystemExit((folder / "whole.log").read_text())
    duration, expected = time.monotonic() - began, outcome(folder / "whole")
    counts, work = Counts(), folder / "killed"
    while True:
        process = train(work)
        if sum(counts.kills.values()) < kills:
            try:
                process.wait(random_moments.uniform(0, duration))
            except subprocess.TimeoutExpired:
                kill_once(process, signals[sum(counts.kills.values()) % len(signals)], counts, work)
                continue
        if process.wait(600):
            raise SystemExit((folder / "killed.log").read_text()[-5000:])
        counts.completed += 1
        counts.different += not is_same(expected, outcome(work))
        if sum(counts.kills.values()) >= kills:
            return counts
        shutil.rmtree(work)


def main() -> None:
    """Run the tasks, and print their counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=tuple(TASKS))
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="of each task (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/kills"), help="default: %(default)s")
    arguments = parser.parse_args()
    failed = False
    for task in arguments.tasks:
        moments = random.Random(f"{arguments.seed} {task}")
        shutil.rmtree(arguments.work_dir / task, ignore_errors=True)
        counts = kill_test(TASKS[task], arguments.work_dir / task, arguments.kills, moments)
        sys.stdout.write(f"{task}: {counts}\n")
        sys.stdout.flush()
        failed |= bool(counts.left_over or counts.unreadable or counts.different)
    sys.exit(failed)


if __name__ == "__main__":
    main()
