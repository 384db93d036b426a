"""tools/train.py and tools/test.py: apply the command line to a config, and run it."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vssm.cli.faults import explain
from vssm.errors import ConfigError, TrainingError, UserError
from vssm.files import make_directory
from vssm.inference.saved import intact_training, latest_checkpoint, read_checkpoint
from vssm.mm.runtime.config import (
    Config,
    autocast,
    load_config,
    parse_options,
    set_precision,
    without_validation,
)
from vssm.mm.runtime.distributed import start_processes
from vssm.mm.runtime.lock import locked
from vssm.mm.runtime.origin import misused_part
from vssm.mm.tasks.runner import TaskRunner
from vssm.mm.tasks.tta import use_tta
from vssm.models import CheckpointError


def run_training(arguments: argparse.Namespace) -> None:
    """Train as the arguments of `train_parser` say."""
    config = prepare_config(arguments)
    if arguments.amp is not None:
        set_precision(config, arguments.amp)
    if arguments.no_validate:
        without_validation(config)
    if arguments.auto_scale_lr:
        if "base_batch_size" not in config.get("auto_scale_lr", {}):
            raise ConfigError("--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config")
        config.auto_scale_lr.enable = True
    resume = arguments.resume or ("auto" if config.get("resume") and not config.get("load_from") else None)
    with locked(config.work_dir), faults_of_training(config):
        earlier = latest_checkpoint(config.work_dir)
        if resume is not None:
            warning = set_resume(config, resume)
        else:
            warning = (
                earlier and f"{earlier} is of an earlier training, which this one replaces; --resume goes on from it"
            )
        runner = TaskRunner.from_cfg(config)
        if warning:
            runner.logger.warning(warning)
        runner.train()


def run_test(arguments: argparse.Namespace) -> dict[str, float]:
    """Evaluate as the arguments of `test_parser` say; returns the metrics."""
    config = prepare_config(arguments)
    if arguments.tta:
        use_tta(config)
    config.load_from = str(arguments.checkpoint)
    precision = autocast(arguments.amp or "off")
    with faults_of_training(config):
        runner = TaskRunner.from_cfg(config)
        runner.compile_model()
        with precision:
            return runner.test()


def prepare_config(arguments: argparse.Namespace) -> Config:
    """Read and check the config, apply the common options, make the work directory, and join the other processes."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    config = load_config(arguments.config, parse_options(arguments.cfg_options))
    if arguments.work_dir is not None:
        config.work_dir = str(arguments.work_dir)
    elif config.get("work_dir") is None:
        config.work_dir = str(Path("work_dirs") / arguments.config.stem)
    if arguments.seed is not None:
        config.randomness = {**config.get("randomness", {}), "seed": arguments.seed}
    if arguments.compile is not None:
        config.compile = arguments.compile == "on" and (config.get("compile") or True)
    make_directory(Path(config.work_dir), "--work-dir")
    config.launcher = arguments.launcher
    start_processes(arguments.launcher, config)
    return config


@contextmanager
def faults_of_training(config: Config) -> Iterator[None]:
    """Turn what a user can mend into one sentence, which ends with the last good checkpoint.

    Raises:
        TrainingError: in place of a fault that `explain` knows.
        ConfigError: in place of one that comes from a part of the config, see `misused_part`.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError | CheckpointError):
            raise
        sentence = explain(error, config.work_dir)
        if sentence is None:
            told = misused_part(error)
            if told is None:
                raise
            raise ConfigError(told) from error
        path = latest_checkpoint(config.work_dir)
        after = f"the newest checkpoint is {path}: continue with --resume" if path else "no checkpoint had been written"
        raise TrainingError(f"{sentence}; {after}") from error


def set_resume(config: Config, resume: str) -> str | None:
    """Resume from a checkpoint; with "auto" from the newest that is whole, or from the beginning if there is none yet.

    Returns:
        A warning if another checkpoint than the newest is taken.

    Raises:
        CheckpointError: the file is damaged; another one beside it that is whole is offered. With "auto", all are.
    """
    work_dir = Path(config.work_dir)
    asked = latest_checkpoint(work_dir) if resume == "auto" else Path(resume)
    path, replaced = asked, None
    if asked is not None:
        try:
            read_checkpoint(asked)
        except CheckpointError as error:
            path = intact_training(asked.parent, besides=asked)
            if path is None:
                raise
            if resume != "auto":
                raise CheckpointError(f"{error}; to go on from the checkpoint before it: --resume {path}") from error
            replaced = f"{error}; going on from {path}, the one before it"
    config.resume = path is not None
    config.load_from = None if path is None else str(path)
    return replaced
