"""What tools/train.py and tools/test.py do: from a command line to a run, with one sentence for foreseeable errors."""

import argparse
import errno
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device

from vssm.data import DataError
from vssm.mm.arguments import test_parser, train_parser
from vssm.mm.checkpoint import latest_checkpoint
from vssm.mm.config import check_precision, load_config, set_precision, without_validation
from vssm.mm.distributed import start_processes
from vssm.mm.errors import ConfigError, UserError
from vssm.mm.hooks import ProgressBarHook
from vssm.mm.runner import TaskRunner
from vssm.mm.tta import use_tta
from vssm.models import CheckpointError

logger = logging.getLogger(__name__)

# Failures of the disk that the user can mend; any other OSError keeps its traceback.
DISK_ERRORS = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def run_tool(main: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Call the body of a tool; a foreseeable failure is one sentence on stderr.

    Returns:
        The exit code: 0, or 1 after such a failure. Any other failure keeps its traceback.
    """
    try:
        main(arguments)
    except (UserError, CheckpointError, DataError) as error:
        return _fail(str(error))
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        return _fail(f"{error.filename or 'writing'}: {error.strerror}")
    except KeyboardInterrupt:
        return _fail("interrupted")
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


def _fail(sentence: str) -> int:
    """Print the sentence; an error that came from a data worker has a traceback before its last line."""
    if sentence.startswith("Caught "):
        sentence = sentence.strip().splitlines()[-1].partition(": ")[2]
    sys.stderr.write(f"error: {sentence}\n")
    return 1


def train(argv: Sequence[str] | None = None) -> int:
    """Entry of tools/train.py."""
    return run_tool(run_training, train_parser().parse_args(argv))


def test(argv: Sequence[str] | None = None) -> int:
    """Entry of tools/test.py."""
    return run_tool(run_test, test_parser().parse_args(argv))


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
    amp = arguments.amp or "off"
    check_precision(amp)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)
    runner = TaskRunner.from_cfg(config)
    runner.compile_model()
    with torch.autocast(get_device(), dtype=dtype, enabled=dtype is not None):
        return runner.test()


def prepare_config(arguments: argparse.Namespace) -> Config:
    """Read and check the config, apply the common options, make the work directory, and join the other processes."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    config = load_config(arguments.config, arguments.cfg_options)
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


def make_directory(directory: Path, option: str) -> None:
    """Make a directory, and write to it once.

    Raises:
        ConfigError: it cannot be made or written; names the option that chooses another.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"probe")
    except OSError as error:
        raise ConfigError(
            f"the directory {directory} cannot be written: {error.strerror}; choose another with {option}"
        ) from error


def set_resume(config: Config, resume: str) -> None:
    """Let a training continue from a checkpoint; with "auto" and no checkpoint yet, from the beginning."""
    path = latest_checkpoint(config.work_dir) if resume == "auto" else Path(resume)
    config.resume = path is not None
    config.load_from = None if path is None else str(path)
