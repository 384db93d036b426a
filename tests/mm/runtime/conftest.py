"""A training that ends without a word, and what it leaves behind."""

import shutil
from pathlib import Path

import pytest
from mmengine.hooks import Hook

from vssm.inference import latest_checkpoint


class Stop(Exception):
    """Stands for a kill: nothing is saved after it."""


class StopAt(Hook):
    """Ends a training before a validation, or before a step."""

    priority = "HIGHEST"

    def __init__(self, step: int | None = None, validation: int | None = None) -> None:
        self.step, self.validation = step, validation

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.step:
            raise Stop

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.validation:
            raise Stop


@pytest.fixture(scope="session")
def stops() -> dict[str, Path]:
    """Copies of what trainings that ended without a word left behind, by their options."""
    return {}


@pytest.fixture
def stopped(make_runner, stops, tmp_path_factory):
    """Train a while, end without a word, and build a runner that goes on with other options.

    The first half of equal options runs once.
    """

    def train(step: int | None = None, validation: int | None = None, then: dict | None = None, **options):
        first, what = make_runner(resume=False, load_from=None, **options), repr((step, validation, options))
        if what in stops:
            shutil.copytree(stops[what], first.work_dir, dirs_exist_ok=True)
        else:
            first.register_hook(StopAt(step, validation))
            with pytest.raises(Stop):
                first.train()
            stops[what] = shutil.copytree(first.work_dir, tmp_path_factory.mktemp("stopped") / "work")
        newest = latest_checkpoint(first.work_dir)
        return make_runner(resume=True, load_from=str(newest), **(then or {}))

    return train


@pytest.fixture
def trained(training, tmp_path) -> Path:
    """A copy of a complete training's work directory, where a runner of this test would write its own."""
    return Path(shutil.copytree(training, tmp_path / "work"))
