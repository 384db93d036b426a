"""Signals: a training saves and stops, in time; data workers end with their parent, and only with it."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import run_code
from mmengine.hooks import Hook
from torch.utils.data import DataLoader, Dataset

from vssm.mm.runtime import signals as watch_module
from vssm.mm.runtime.seeding import keep_epoch_seed
from vssm.mm.runtime.signals import InterruptedTraining, InterruptHook, SignalWatch
from vssm.processes import die_with_parent

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="as clusters are")
SMOOTH = {"type": "EMAHook", "momentum": 0.1}


@pytest.fixture(autouse=True)
def _heard():
    """Signals that this run was started to ignore, as by nohup or in the background, are heard by its tests."""
    ignored = [signum for signum in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(signum) == signal.SIG_IGN]
    for signum in ignored:
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    yield
    for signum in ignored:
        signal.signal(signum, signal.SIG_IGN)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Return when a condition holds, or fail; a machine with much else to do takes long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class SendSignal(Hook):
    """Sends this process a signal in the middle of a step, or of a validation."""

    def __init__(self, signum: int, step: int, in_validation: bool = False) -> None:
        self.signum, self.step, self.in_validation = signum, step, in_validation

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.step and not self.in_validation:
            self.send(runner)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.step and self.in_validation:
            self.send(runner)

    def send(self, runner):
        os.kill(os.getpid(), self.signum)
        (hook,) = [hook for hook in runner.hooks if isinstance(hook, InterruptHook)]
        wait_for(lambda: hook.watch.received)


def end_of(work_dir: Path) -> dict:
    return torch.load(work_dir / "epoch_2.pth", weights_only=True)


@pytest.mark.parametrize(
    ("signum", "step", "in_validation", "accumulation", "stops"),
    [
        (signal.SIGTERM, 2, False, 1, 2),
        (signal.SIGINT, 4, False, 1, 4),  # the last step of an epoch
        (signal.SIGHUP, 5, False, 2, 6),  # in the middle of an accumulation
        (signal.SIGUSR1, 4, True, 1, 4),
    ],
)
def test_a_signal_saves_and_the_training_goes_on_as_if_there_had_been_none(
    make_runner, tmp_path, signum, step, in_validation, accumulation, stops
):
    options = {"optim_wrapper__accumulative_counts": accumulation, "default_hooks__ema": SMOOTH}
    before = signal.getsignal(signum)
    make_runner(work_dir=str(tmp_path / "whole"), **options).train()
    interrupted = make_runner(work_dir=str(tmp_path / "stopped"), **options)
    interrupted.register_hook(SendSignal(signum, step, in_validation))
    path = tmp_path / "stopped/interrupted.pth"
    with pytest.raises(InterruptedTraining, match=f"{signum.name} after step {stops}: saved to {path}") as caught:
        interrupted.train()
    assert caught.value.exit_code == 128 + signum and signal.getsignal(signum) is before
    assert torch.load(path, weights_only=True)["meta"]["iter"] == stops

    rest = make_runner(work_dir=str(tmp_path / "stopped"), resume=True, load_from=str(path), **options)
    rest.train()
    assert not path.exists()
    whole, resumed = end_of(tmp_path / "whole"), end_of(tmp_path / "stopped")
    for part in ("state_dict", "ema_state_dict"):
        for name, value in whole[part].items():
            assert torch.equal(resumed[part][name], value), (part, name)
    scores = [end["message_hub"]["runtime_info"]["best_score"] for end in (whole, resumed)]
    assert scores[0] == scores[1]


def test_without_a_checkpoint_hook_nothing_is_saved(make_runner):
    runner = make_runner(default_hooks__checkpoint=None, default_hooks__interrupt=dict(type="InterruptHook", seconds=9))
    runner._hooks = [hook for hook in runner.hooks if type(hook).__name__ != "CheckpointHook"]
    runner.register_hook(SendSignal(signal.SIGTERM, 1))
    with pytest.raises(InterruptedTraining, match="not saved, as the config has no checkpoint hook"):
        runner.train()


def code_of(child: Callable[[], None], seconds: float = 60) -> int:
    """The exit code of a forked process that runs a function; it is killed after some seconds."""
    number = os.fork()
    if not number:
        child()
        os._exit(77)
    for _ in range(int(seconds / 0.02)):
        ended, status = os.waitpid(number, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    raise AssertionError(f"still there after {seconds} s")


def watched(seconds: float, *signals: int) -> Callable[[], None]:
    """A process that gets signals, each when the one before it was taken, and never comes to the end of its step."""

    def child() -> None:
        watch_module.SAME_SIGNAL = 0.0
        watch = SignalWatch(seconds)
        watch.start()
        for signum in signals:
            os.kill(os.getpid(), signum)
            wait_for(lambda: watch.received)
        time.sleep(20)

    return child


def test_a_second_signal_stops_at_once():
    assert code_of(watched(60, signal.SIGTERM, signal.SIGINT)) == 128 + signal.SIGINT


def test_the_time_limit_stops_too():
    assert code_of(watched(0.3, signal.SIGTERM)) == 128 + signal.SIGTERM


def test_the_same_signal_twice_in_milliseconds_is_one():
    """As ``timeout`` sends it, to the process and to its group."""

    def child() -> None:
        watch_module.SAME_SIGNAL = 60.0  # this process may wait for a core between two of them
        watch = SignalWatch(60)
        watch.start()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: watch.received)
        time.sleep(0.1)
        os._exit(watch.received)

    assert code_of(child) == signal.SIGTERM


def test_an_ignored_signal_stays_ignored():
    """As nohup ignores SIGHUP."""

    def child() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        watch = SignalWatch(60)
        watch.start()
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.1)
        os._exit(watch.received)

    assert code_of(child) == 0


class Numbers(Dataset):
    """Items that take some time, or all the time there is."""

    def __init__(self, seconds: float = 0.01, size: int = 1) -> None:
        self.seconds, self.size = seconds, size

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return torch.full((self.size,), index)


def workers_of(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(child) for child in children]


def alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "dataset",
    [Numbers(), Numbers(seconds=1000), Numbers(size=100_000)],
    ids=["working", "stuck in an item", "stuck in a full pipe"],
)
@pytest.mark.parametrize("delay", [0, 0.4], ids=["on starting", "later"])
def test_no_worker_outlives_its_parent(dataset, signum, delay):
    parent = os.fork()
    if not parent:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        loader = DataLoader(dataset, num_workers=2, worker_init_fn=keep_epoch_seed, prefetch_factor=50)
        iterator = iter(loader)
        time.sleep(60)
        del iterator
        os._exit(0)
    wait_for(lambda: len(workers_of(parent)) == 2)
    workers = workers_of(parent)
    time.sleep(delay)
    assert all(map(alive, workers))
    os.kill(parent, signum)
    os.waitpid(parent, 0)
    wait_for(lambda: not any(map(alive, workers)))


def test_a_parent_that_ended_before_the_call():
    def child() -> None:
        die_with_parent(os.getppid() + 1)
        time.sleep(20)

    assert code_of(child) == -signal.SIGKILL


def test_a_launched_process_saves_when_its_launcher_is_killed(tmp_path):
    """torchrun that gets SIGKILL leaves its processes behind: for them it is a SIGTERM."""

    def launcher() -> None:
        parent = os.getpid()
        if not os.fork():
            watch = SignalWatch(60)
            watch.start()
            die_with_parent(parent, signal.SIGTERM)
            (tmp_path / "ready").touch()
            wait_for(lambda: watch.received)
            (tmp_path / f"received_{watch.received}").touch()
            os._exit(0)
        wait_for((tmp_path / "ready").exists)
        os.kill(parent, signal.SIGKILL)

    assert code_of(launcher) == -signal.SIGKILL
    wait_for((tmp_path / f"received_{int(signal.SIGTERM)}").exists)


# In a process of its own, as a training is: one that has run other tests may have threads that receive signals.
SIGNALLED = """
import os, signal, sys, time, torch
from torch.utils.data import DataLoader, Dataset
from vssm.processes import protect_worker

class Numbers(Dataset):
    def __len__(self):
        return 1000

    def __getitem__(self, index):
        time.sleep(0.01)
        return torch.full((1,), index)

for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    batches = iter(DataLoader(Numbers(), num_workers=2, worker_init_fn=protect_worker))
    found = [int(next(batches)), int(next(batches))]  # one of each worker, so that both are protected
    for worker in batches._workers:
        sender = os.fork()
        if not sender:
            os.kill(worker.pid, signum)
            os._exit(0)
        os.waitpid(sender, 0)
    time.sleep(0.05)
    found += [int(next(batches)) for _ in range(20)]
    assert found == list(range(22)), (signum, found)
"""


def test_workers_obey_nobody_else(tmp_path):
    """A signal to the whole group of processes must not take away the batches of the step that saves."""
    run_code(SIGNALLED, tmp_path)


class Stuck(Dataset):
    """Never gives an item; a file says that a worker is at one."""

    def __init__(self, ready: Path) -> None:
        self.ready = ready

    def __len__(self):
        return 1

    def __getitem__(self, index):
        self.ready.touch()
        time.sleep(1000)


def test_a_parent_ends_its_worker(tmp_path):
    loader = DataLoader(Stuck(tmp_path / "ready"), num_workers=1, worker_init_fn=keep_epoch_seed)
    batches = iter(loader)
    (worker,) = batches._workers
    wait_for((tmp_path / "ready").exists)
    worker.terminate()
    worker.join(60)
    assert not worker.is_alive()
