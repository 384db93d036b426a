"""A training that takes seconds: timm's test_vit on a handful of embedded images."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
_base_ = {base!r}
_set = dict(type='ShapesDataset', root={data!r}, train=32, val=20, image_size=32, seed=0)
_transform = dict(type='TimmTransform', input_size=32)
model = dict(
    type='ImageClassifier',
    backbone=dict(model_name='test_vit', num_classes=10, img_size=32, drop_path_rate=0.1),
    data_preprocessor=dict(type='ClassificationPreprocessor', mixup=dict(mixup_alpha=0.8, num_classes=10)))
train_dataloader = dict(
    batch_size=8, num_workers=1, drop_last=True, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(split='train', transform=dict(is_training=True, auto_augment='rand-m9', **_transform), **_set))
val_dataloader = dict(
    batch_size=10, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(split='val', transform=_transform, **_set))
test_dataloader = val_dataloader
train_cfg = dict(by_epoch=True, max_epochs=3)
optim_wrapper = dict(
    constructor='GroupMatcherOptimWrapperConstructor', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
param_scheduler = dict(type='CosineAnnealingLR', T_max=12, by_epoch=False)
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(logger=dict(interval=1), ema=dict(type='EMAHook', momentum=0.1))
"""


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture
def config(tmp_path: Path, shapes_root: Path) -> Path:
    """The configuration file of the small training."""
    path = tmp_path / "small.py"
    base = str(ROOT / "configs/_base_/default_runtime.py")
    path.write_text(CONFIG.format(base=base, data=str(shapes_root)))
    return path


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
