"""A small training that runs inside the test process."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config
from quick_configs import quick_configs  # noqa: F401
from small_training import write_config

from vssm.mm.runtime.config import load_config
from vssm.mm.tasks.runner import TaskRunner

_count = itertools.count()


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


def write_small(folder: Path, data: Path) -> Path:
    """The configuration file of the small training: two epochs."""
    more = "default_hooks['progress'] = None\nvisualizer = dict(vis_backends=[dict(type='LocalVisBackend')])\n"
    return write_config(folder / "small.py", data, more)


def load_small(config_file: Path) -> Config:
    """It, under a name that no other run of this process has (mmengine's logs are global)."""
    work_dir = str(config_file.with_name("work"))
    return load_config(
        config_file, {"work_dir": work_dir, "experiment_name": f"test_{next(_count)}", "log_level": "ERROR"}
    )


@pytest.fixture
def config_file(tmp_path: Path, shapes_root: Path) -> Path:
    return write_small(tmp_path, shapes_root)


@pytest.fixture
def small_config(config_file: Path) -> Config:
    return load_small(config_file)


@pytest.fixture(scope="session")
def training(tmp_path_factory: pytest.TempPathFactory, shapes_root: Path) -> Path:
    """The work directory of a complete training: epoch_1.pth, epoch_2.pth and the best. To be copied, not changed."""
    config_file = write_small(tmp_path_factory.mktemp("training"), shapes_root)
    TaskRunner.from_cfg(load_small(config_file)).train()
    return config_file.with_name("work")


@pytest.fixture
def make_runner(small_config: Config) -> Callable[..., TaskRunner]:
    """Build a runner, with options of the config changed."""

    def make(**options: object) -> TaskRunner:
        small_config.merge_from_dict({name.replace("__", "."): value for name, value in options.items()})
        small_config.experiment_name = f"test_{next(_count)}"
        return TaskRunner.from_cfg(small_config)

    return make
