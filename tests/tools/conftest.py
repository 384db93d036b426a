"""The small training with augmentation, mixup, schedule and averaged weights; commands as a user calls them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_training import ROOT, write_config

# All that is random, and a schedule.
MORE = """
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
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run a command of the checkout as a user does, from another directory."""

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

    def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
        return run(ROOT / "tools/train.py", config, *arguments, **environment)

    return call
