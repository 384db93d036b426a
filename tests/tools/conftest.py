"""The small training with augmentation, mixup, schedule and averaged weights; commands as a user calls them."""

import logging
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from quick_configs import quick_configs  # noqa: F401
from small_training import ROOT, write_config

# All that is random, and a schedule. mmengine has one log for each name in a process.
MORE = """
import time
experiment_name = f'small_{time.time_ns()}'
model['backbone']['drop_path_rate'] = 0.1
model['data_preprocessor'] = dict(type='ClassificationPreprocessor', mixup=dict(mixup_alpha=0.8, num_classes=10))
train_dataloader['num_workers'] = 1
train_dataloader['dataset']['transform'] = dict(
    type='TimmTransform', input_size=32, is_training=True, auto_augment='rand-m9')
train_cfg['max_epochs'] = 3
param_scheduler = dict(type='CosineAnnealingLR', T_max=12, by_epoch=False)
auto_scale_lr = dict(base_batch_size=16)
default_hooks['ema'] = dict(type='EMAHook', momentum=0.1)
"""


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture
def config(tmp_path: Path, shapes_root: Path) -> Path:
    """The configuration file of the small training."""
    return write_config(tmp_path / "small.py", shapes_root, MORE)


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> Callable[..., subprocess.CompletedProcess]:
    """Run a file of tools/ from another directory, as a user does but in this process: its imports take seconds."""

    def call(tool: Path, *arguments: object) -> subprocess.CompletedProcess:
        command = [str(tool), *map(str, arguments)]
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(sys, "argv", command)
            patch.setattr(sys, "path", [str(tool.parent), *sys.path])
            patch.setattr(logging.getLogger("vssm"), "handlers", [])  # a training leaves its own behind
            with pytest.raises(SystemExit) as end:
                runpy.run_path(str(tool), run_name="__main__")
        return subprocess.CompletedProcess(command, end.value.code, *capfd.readouterr())

    return call


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run Python on a command of the checkout in a process of its own."""

    def call(*command: object, **environment: str) -> subprocess.CompletedProcess:
        environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(
            [str(part) for part in (sys.executable, *command)],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return call


@pytest.fixture
def train(run: Callable, config: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run tools/train.py on the small config."""
    return lambda *arguments: run(ROOT / "tools/train.py", config, *arguments)
