"""A small training that runs inside the test process."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config

from vssm.mm.runtime.config import load_config
from vssm.mm.tasks.runner import TaskRunner

RUNTIME = Path(__file__).resolve().parents[2] / "configs/_base_/default_runtime.py"
_count = itertools.count()


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture
def config_file(tmp_path: Path, shapes_root: Path) -> Path:
    """Two epochs of four steps of timm's test_vit on 32 images."""
    path = tmp_path / "small.py"
    path.write_text(
        f"""
_base_ = {str(RUNTIME)!r}
_set = dict(type='ShapesDataset', root={str(shapes_root)!r}, train=32, val=20, image_size=32,
            transform=dict(type='TimmTransform', input_size=32))
model = dict(type='ImageClassifier', backbone=dict(model_name='test_vit', num_classes=10, img_size=32))
train_dataloader = dict(
    batch_size=8, num_workers=0, drop_last=True, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(split='train', **_set))
val_dataloader = dict(
    batch_size=10, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(split='val', **_set))
test_dataloader = val_dataloader
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(
    constructor='GroupMatcherOptimWrapperConstructor', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
default_hooks = dict(logger=dict(interval=1), progress=None)
visualizer = dict(vis_backends=[dict(type='LocalVisBackend')])
"""
    )
    return path


@pytest.fixture
def small_config(config_file: Path, tmp_path: Path) -> Config:
    """Its configuration, under a name that no other run of this process has (mmengine's logs are global)."""
    return load_config(
        config_file,
        {"work_dir": str(tmp_path / "work"), "experiment_name": f"test_{next(_count)}", "log_level": "ERROR"},
    )


@pytest.fixture
def make_runner(small_config: Config) -> Callable[..., TaskRunner]:
    """Build a runner, with options of the config changed."""

    def make(**options: object) -> TaskRunner:
        small_config.merge_from_dict({name.replace("__", "."): value for name, value in options.items()})
        small_config.experiment_name = f"test_{next(_count)}"
        return TaskRunner.from_cfg(small_config)

    return make
