"""At a signal a training stops at its next step, writes a checkpoint and says where."""

import os
import select
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from mmengine.dist import all_reduce, barrier, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from vssm.errors import TrainingError
from vssm.mm.runtime.checkpoint import last_good, save_interrupted

# SIGTERM comes from clusters, SIGINT from Ctrl-C, SIGHUP from a lost terminal; SIGUSR1 is what Slurm's --signal is set
# to where a job wants to be told before its time is up.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# ``timeout`` and some launchers send a signal twice within milliseconds. A second one counts from here on (seconds).
SAME_SIGNAL = 0.5


class InterruptedTraining(TrainingError):
    """A training that a signal stopped, after it had saved its state."""

    def __init__(self, signum: int, runner: Runner, step: int, path: Path | None) -> None:
        what = f"stopped by {signal.Signals(signum).name} after step {step}"
        where = f"saved to {path}; continue with --resume"
        if path is None:
            where = f"not saved, as the config has no checkpoint hook; {last_good(runner)}"
        super().__init__(f"{what}: {where}")
        self.exit_code = 128 + signum


class SignalWatch:
    """Takes signals in a thread of its own, which works while the main thread waits for a GPU or another process.

    Args:
        seconds: the process ends that long after the first signal, whatever it does.

    Attributes:
        received: the number of the first signal; 0 before.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.received = 0

    def start(self) -> None:
        """Take the signals. Must be called in the main thread."""
        self._read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        self._earlier_fd = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        # A signal that is ignored stays so: nohup ignores SIGHUP.
        handlers = {each: signal.getsignal(each) for each in SIGNALS}
        self._taken = {each: handler for each, handler in handlers.items() if handler is not signal.SIG_IGN}
        for each in self._taken:
            signal.signal(each, _only_wake)
        self._write_end = write_end
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        _watches.append(self)

    def stop(self) -> None:
        """Give the signals back to those who had them."""
        if self not in _watches:
            return
        _watches.remove(self)
        for each, handler in self._taken.items():
            signal.signal(each, handler or signal.SIG_DFL)
        signal.set_wakeup_fd(self._earlier_fd)
        os.write(self._write_end, b"\0")
        self._thread.join()
        os.close(self._read_end)
        os.close(self._write_end)

    def _watch(self) -> None:
        first, deadline = 0.0, None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._read_end], [], [], left)[0]:
                _end(self.received, f"no checkpoint could be written within {self.seconds:g} s of the signal: stopped")
            (signum,) = os.read(self._read_end, 1)
            if signum == 0:
                return
            if signum not in self._taken:
                continue  # of others, such as the SIGCHLD that PyTorch's data loaders take
            now = time.monotonic()
            if not self.received:
                self.received, first, deadline = signum, now, now + self.seconds
                _say(f"{signal.Signals(signum).name}: stopping at the next step; a second signal stops at once")
            elif now - first > SAME_SIGNAL:
                _end(signum, f"{signal.Signals(signum).name} again: stopped at once, nothing more is saved")


_watches: list[SignalWatch] = []


def _only_wake(signum: int, frame: object) -> None:
    """Python writes the signal to the watch's pipe before it calls this."""


def _forget_in_child() -> None:
    """A child process must not write into its parent's pipe."""
    if _watches:
        signal.set_wakeup_fd(-1)
        _watches.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def _say(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


def _end(signum: int, sentence: str) -> None:
    """End this process as the signal would have. Data workers end with it; see `vssm.processes`."""
    _say(f"error: {sentence}")
    os._exit(128 + signum)


@HOOKS.register_module()
class InterruptHook(Hook):
    """Saves a checkpoint at the first step after SIGTERM, Ctrl-C, SIGHUP or SIGUSR1, and stops the training.

    All processes stop at the same step if one of them gets the signal. During a validation it stops at once, and the
    resumed training validates. A second signal ends the process without saving.

    Args:
        seconds: the process ends that long after the signal, saved or not. Slurm, Kubernetes and torchrun kill after
            30 by default.
    """

    # After all others: what they do at the end of a step is in the checkpoint.
    priority = 95

    def __init__(self, seconds: float = 25.0) -> None:
        self.watch = SignalWatch(seconds)

    def before_train(self, runner: Runner) -> None:
        """Take the signals."""
        if threading.current_thread() is threading.main_thread():
            self.watch.start()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Save and stop after a signal, once the gradients of an accumulation are applied.

        Raises:
            InterruptedTraining: says where the checkpoint is.
        """
        signum = self._signal_of_any()
        if signum and runner.optim_wrapper.should_update():
            path = save_interrupted(runner, runner.iter + 1)
            barrier()  # the launcher ends all processes when the first one ends
            raise InterruptedTraining(signum, runner, runner.iter + 1, path)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: object = None
    ) -> None:
        """Save and stop after a signal to the first process; others, which may have fewer batches, end with it.

        Raises:
            InterruptedTraining: says where the checkpoint is.
        """
        signum = self.watch.received
        if signum and is_main_process():
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # gives the model its own weights back
            raise InterruptedTraining(signum, runner, runner.iter, save_interrupted(runner, runner.iter))

    def close(self, runner: Runner) -> None:
        """Give the signals back."""
        self.watch.stop()

    def _signal_of_any(self) -> int:
        """The signal that any process received; 0 for none."""
        received = torch.tensor(self.watch.received)
        all_reduce(received, op="max")
        return int(received)
