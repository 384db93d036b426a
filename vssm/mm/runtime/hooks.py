"""Hooks of a training: random state of each step, throughput, progress bar, stop at a loss that is not finite."""

import logging
import sys
import time

import numpy
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vssm.data import StreamedImageDataset
from vssm.errors import ConfigError, TrainingError
from vssm.mm.runtime.checkpoint import last_good
from vssm.mm.runtime.seeding import STEP, seed_for, seed_generators


@HOOKS.register_module()
class EpochHook(Hook):
    """Seeds each step from (seed, step, process), and reports the number of bad images at the end of an epoch.

    A resumed training then draws the same random numbers as one that was not interrupted, from any step on. The
    numbers that loading takes come with each batch; see `vssm.mm.runtime.seeding`.
    """

    # Before all hooks that draw random numbers.
    priority = "VERY_HIGH"

    def before_train_epoch(self, runner: Runner) -> None:
        """Let a stream shuffle anew. A training by steps is one epoch.

        Raises:
            ConfigError: data workers that read a stream are persistent, and there are several epochs.
        """
        loader = runner.train_dataloader
        if isinstance(loader.dataset, StreamedImageDataset):
            if runner.max_epochs > 1 and loader.persistent_workers:
                raise ConfigError(
                    "train_dataloader.persistent_workers=True carries the random state of a stream from epoch to "
                    "epoch, so that a resumed training would differ: leave it out"
                )
            loader.dataset.set_epoch(runner.epoch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Seed Python, NumPy and PyTorch for mixup, dropout and the like."""
        seed_generators(seed_for(runner.seed, STEP, runner.iter))

    def after_train_epoch(self, runner: Runner) -> None:
        """Log the number of images skipped so far."""
        bad = getattr(runner.train_dataloader.dataset, "bad_images", 0)
        if bad:
            runner.logger.warning(f"{bad} training images could not be read and were skipped; see above")


class AveragingHook(EMAHook):
    """Averages the weights after each change of them; arguments are those of mmengine's ``EMAHook``, which it replaces.

    mmengine averages after each step, so where gradients are accumulated, the same weights several times.
    """

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Average, or before the averages begin copy, the weights."""
        if not self._ema_started(runner) or runner.optim_wrapper.should_update():
            super().after_train_iter(runner, batch_idx, data_batch, outputs)


@HOOKS.register_module()
class ThroughputHook(Hook):
    """Logs ``images_per_second`` over all processes, averaged over the last steps.

    Args:
        window: number of steps in the mean.
    """

    # After IterTimerHook (NORMAL), before LoggerHook (BELOW_NORMAL).
    priority = 55

    def __init__(self, window: int = 20) -> None:
        self.window = window

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Update the scalar from the batch and the timer."""
        images = len(data_batch["inputs"]) * get_world_size()
        seconds = runner.message_hub.get_scalar("train/time").mean(self.window)
        runner.message_hub.update_scalar("train/images_per_second", images / max(float(seconds), 1e-9))


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops the training at a loss that is not finite, before anything is saved."""

    priority = "HIGHEST"

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Check the loss of this step.

        Raises:
            TrainingError: names the step, the epoch, and the last good checkpoint.
        """
        loss = float(outputs["loss"].detach())
        if not numpy.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {runner.iter + 1} (epoch {runner.epoch + 1}): training stopped; "
                f"{last_good(runner)}; a lower learning rate, gradient clipping, or --amp bf16 or off may help"
            )


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """A progress bar with epoch, step, loss, learning rate, throughput and time left.

    Only on a terminal: elsewhere the log has the same values, unless `plain_every` asks for lines.

    Args:
        plain_every: seconds between plain lines if the output is no terminal; None for no lines.
    """

    priority = "LOWEST"

    def __init__(self, plain_every: float | None = None) -> None:
        self.plain_every = plain_every
        self.progress: Progress | None = None
        self.last_line = 0.0

    def before_train(self, runner: Runner) -> None:
        """Start the bar where there is a terminal."""
        console = Console()
        if not is_main_process() or not console.is_terminal:
            return
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            expand=True,
        )
        self.task = self.progress.add_task("", total=runner.max_iters, completed=runner.iter, epoch="", values="")
        self.progress.start()
        _redirect(runner.logger)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Update the bar, or print a plain line when it is due."""
        if self.progress is not None:
            self.progress.update(self.task, completed=runner.iter + 1, epoch=_epoch(runner), values=_values(runner))
        elif self.plain_every is not None and is_main_process():
            now = time.monotonic()
            if now - self.last_line >= self.plain_every or runner.iter + 1 == runner.max_iters:
                self.last_line = now
                left = time.strftime("%H:%M:%S", time.gmtime(runner.message_hub.get_info("eta", 0)))
                sys.stdout.write(
                    f"epoch {_epoch(runner)}  step {runner.iter + 1}/{runner.max_iters}  {_values(runner)}  "
                    f"{left} left\n"
                )
                sys.stdout.flush()

    def close(self, runner: Runner) -> None:
        """Restore the terminal, after an error too."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
            _redirect(runner.logger)


def _redirect(logger: logging.Logger) -> None:
    """Set the console handlers to the current stdout, so that log lines scroll above the bar."""
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stdout)


def _epoch(runner: Runner) -> str:
    return f"{runner.epoch + 1}/{runner.max_epochs}"


def _values(runner: Runner) -> str:
    hub = runner.message_hub
    loss = hub.get_scalar("train/loss").mean(20)
    rate = max(group["lr"] for group in runner.optim_wrapper.optimizer.param_groups)
    speed = hub.get_scalar("train/images_per_second").current()
    return f"loss {loss:.3f}  rate {rate:.2e}  {speed:,.0f} img/s"
