"""mmengine's Runner with whole checkpoints, trainings that go on exactly, and logs of its own for each training."""

import logging
import re
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.visualization import Visualizer
from torch import nn

from vssm.errors import ConfigError, TrainingError
from vssm.files import replace_atomically
from vssm.mm.runtime.distributed import unwrap
from vssm.mm.runtime.hooks import AveragingHook
from vssm.mm.runtime.loops import EpochLoop, StepLoop
from vssm.mm.runtime.resume import check_ends, resume_training
from vssm.mm.runtime.seeding import WEIGHTS, seed_for, seed_generators
from vssm.nn import run_fast

MMENGINE_HOOKS = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
# Ours of the loops that mmengine's configs name; a config without a name says by_epoch.
LOOPS = {"EpochBasedTrainLoop": EpochLoop, "IterBasedTrainLoop": StepLoop, True: EpochLoop, False: StepLoop}


class SafeRunner(Runner):
    """A runner of any task; arguments are those of mmengine's ``Runner``."""

    _first_step: int | None = None

    @property
    def has_trained(self) -> bool:
        """Whether a step was made, so that every part of the training has been used once."""
        return self._first_step is not None and self.iter > self._first_step

    @classmethod
    def from_cfg(cls, cfg: Config) -> "SafeRunner":
        """Build a runner from a config.

        Raises:
            ConfigError: a class that is not there, or one that does not take the arguments of the config.
        """
        try:
            return super().from_cfg(cfg)
        except (KeyError, TypeError, ValueError) as error:
            reason = str(error).strip("'\"")
            if not re.search(
                "is not in the .* registry|unexpected keyword|missing .* required|all None or not", reason
            ):
                raise
            raise ConfigError(f"the config cannot be built: {reason.partition('. Please check')[0]}") from error

    def build_logger(self, *args: object, **kwargs: object) -> MMLogger:
        """Build mmengine's logger, and send the library's messages to its handlers.

        Long texts (the environment, the whole config, the order of hooks) go to the log file only.
        """
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(_is_short)
        library = logging.getLogger("vssm")
        library.handlers = list(logger.handlers)
        library.setLevel(logging.INFO)
        return logger

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        """Build a visualizer under this training's name.

        mmengine stores visualizers by name, and mmdet's and mmseg's base configs all use the same one: a second
        training in a process would write its curves into the folder of the first.
        """
        if isinstance(visualizer, dict):
            visualizer = {**visualizer, "name": self.experiment_name}
        return super().build_visualizer(visualizer)

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the loop, ours in place of mmengine's, on batches that carry the seeds of their random numbers.

        Raises:
            ConfigError: a training by epochs has a sampler without an end.
        """
        if isinstance(loop, dict):
            loop = dict(loop)
            kind = loop.pop("type", None) or bool(loop.pop("by_epoch", False))
            loop["type"] = LOOPS.get(kind, kind)
        if isinstance(self._train_dataloader, dict):
            self._train_dataloader = seeded_batches(self._train_dataloader)
        loop = super().build_train_loop(loop)
        sampler = getattr(loop.dataloader.batch_sampler, "sampler", None)
        if isinstance(loop, EpochBasedTrainLoop) and isinstance(sampler, InfiniteSampler):
            raise ConfigError(
                "an epoch would never end: train_cfg counts epochs and train_dataloader.sampler is an InfiniteSampler; "
                "choose DefaultSampler, or train_cfg=dict(type='IterBasedTrainLoop', max_iters=...)"
            )
        return loop

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        """Scale the rates to the images of a change of the weights; mmengine counts those of one step of several."""
        steps = getattr(optim_wrapper, "_accumulative_counts", 1)
        if auto_scale_lr and auto_scale_lr.get("enable") and steps > 1:
            self.logger.info(f"the gradients of {steps} steps are summed, so the rates are scaled for {steps} batches")
            auto_scale_lr = {**auto_scale_lr, "base_batch_size": auto_scale_lr["base_batch_size"] / steps}
        super().scale_lr(optim_wrapper, auto_scale_lr)

    def train(self) -> nn.Module:
        """Train; hooks with a method ``close`` are closed at the end, after an error too."""
        try:
            return super().train()
        finally:
            self.call_hook("close")

    def load_or_resume(self) -> None:
        """Load weights or go on with a training, and compare schedules and hooks with its end."""
        super().load_or_resume()
        if isinstance(self._train_loop, EpochBasedTrainLoop | IterBasedTrainLoop):
            self._first_step = self.iter
            check_ends(self)

    def resume(self, filename: str, *args: object, **kwargs: object) -> None:
        """Go on with a training; see `resume_training`. Further arguments are mmengine's, and unused."""
        resume_training(self, self.load_checkpoint(filename), filename)

    def _init_model_weights(self) -> None:
        """Draw the first weights from the seed, whatever took random numbers before them."""
        seed_generators(seed_for(self.seed, WEIGHTS))
        super()._init_model_weights()

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Move the model to its device. The CPU has no SyncBatchNorm: there each process has its own statistics."""
        return super().wrap_model(
            model_wrapper_cfg, model if torch.cuda.is_available() else revert_sync_batchnorm(model)
        )

    def register_hook(self, hook: Hook | dict, priority: int | str | None = None) -> None:
        """Register a hook, ours in place of mmengine's ``EMAHook``."""
        if isinstance(hook, dict) and hook.get("type") in ("EMAHook", "mmengine.EMAHook"):
            hook = {**hook, "type": AveragingHook}
        super().register_hook(hook, priority)

    def register_default_hooks(self, hooks: dict[str, Hook | dict | None] | None = None) -> None:
        """Register the default hooks and `InterruptHook`. None removes one; mmengine accepts it for its own only."""
        hooks = {"interrupt": {"type": "InterruptHook"}, **(hooks or {})}
        hooks = {name: hook for name, hook in hooks.items() if hook is not None or name in MMENGINE_HOOKS}
        super().register_default_hooks(hooks)

    def compile_model(self) -> None:
        """Let the backbone run as the config's ``compile`` says: see `vssm.nn.run_fast`.

        mmengine compiles the whole training step with optimiser and logging; with torch 2.15 the loss then has no
        gradient.
        """
        model = unwrap(self.model)
        run_fast(getattr(model, "backbone", model), self.cfg.get("compile"), self.logger.info)

    def _maybe_compile(self, target: str) -> None:
        self.compile_model()

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, *args: object, **kwargs: object) -> None:
        """Write a checkpoint under a temporary name, then rename it.

        Raises:
            TrainingError: the disk is full or cannot be written; earlier checkpoints are intact.
        """
        final = Path(out_dir) / filename
        temporary = final.with_name(f".{final.name}.part")
        try:
            super().save_checkpoint(out_dir, temporary.name, *args, **kwargs)
            replace_atomically(temporary, final)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise TrainingError(
                f"cannot write the checkpoint {final}: {error.strerror or error}; earlier checkpoints there are intact"
            ) from error


def seeded_batches(dataloader: dict) -> dict:
    """The configuration of a data loader with a `SeededBatchSampler` around its batches; streams have no sampler."""
    if not dataloader.get("sampler"):
        return dataloader
    loader = dict(dataloader)
    batches = loader.pop("batch_sampler", None)
    drop_last = False if batches else loader.pop("drop_last", False)
    loader["batch_sampler"] = {"type": "SeededBatchSampler", "batches": batches, "drop_last": drop_last}
    return {"batch_size": 1, **loader}


def _is_short(record: logging.LogRecord) -> bool:
    return record.getMessage().count("\n") < 10
