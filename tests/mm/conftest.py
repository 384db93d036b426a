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


@pytest.fixture
def config_file(tmp_path: Path, shapes_root: Path) -> Path:
    """The configuration file of the small training: two epochs."""
    more = "default_hooks['progress'] = None\nvisualizer = dict(vis_backends=[dict(type='LocalVisBackend')])\n"
    return write_config(tmp_path / "small.py", shapes_root, more)


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
