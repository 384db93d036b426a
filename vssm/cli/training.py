"""tools/train.py and tools/test.py: apply the command line to a config, and run it."""

import argparse
import os
from pathlib import Path

from vssm.errors import ConfigError
from vssm.files import make_directory
from vssm.inference import latest_checkpoint
from vssm.mm.runtime.config import (
    Config,
    autocast,
    load_config,
    parse_options,
    set_precision,
    without_validation,
)
from vssm.mm.runtime.distributed import start_processes
from vssm.mm.runtime.hooks import ProgressBarHook
from vssm.mm.tasks.runner import TaskRunner
from vssm.mm.tasks.tta import use_tta


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
    if arguments.resume is not None:
        set_resume(config, arguments.resume)
    runner = TaskRunner.from_cfg(config)
    try:
        runner.train()
    finally:
        for hook in runner.hooks:
            if isinstance(hook, ProgressBarHook):
                hook.stop(runner)


def run_test(arguments: argparse.Namespace) -> dict[str, float]:
    """Evaluate as the arguments of `test_parser` say; returns the metrics."""
    config = prepare_config(arguments)
    if arguments.tta:
        use_tta(config)
    config.load_from = str(arguments.checkpoint)
    precision = autocast(arguments.amp or "off")
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
    if arguments.compile:
        config.compile = config.get("compile") or True
    make_directory(Path(config.work_dir), "--work-dir")
    config.launcher = arguments.launcher
    start_processes(arguments.launcher, config)
    return config


def set_resume(config: Config, resume: str) -> None:
    """Resume from a checkpoint; with "auto" and no checkpoint yet, start from the beginning."""
    path = latest_checkpoint(config.work_dir) if resume == "auto" else Path(resume)
    config.resume = path is not None
    config.load_from = None if path is None else str(path)
