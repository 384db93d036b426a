"""A training that ends without a word, and what it leaves behind."""

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


@pytest.fixture
def stopped(make_runner):
    """Train a while, end without a word, and build a runner that goes on with other options."""

    def train(step: int | None = None, validation: int | None = None, then: dict | None = None, **options):
        first = make_runner(resume=False, load_from=None, **options)
        first.register_hook(StopAt(step, validation))
        with pytest.raises(Stop):
            first.train()
        newest = latest_checkpoint(first.work_dir)
        return make_runner(resume=True, load_from=str(newest), **(then or {}))

    return train


@pytest.fixture
def trained(make_runner) -> Path:
    """The work directory of a complete training: epoch_1.pth, epoch_2.pth and the best."""
    runner = make_runner()
    runner.train()
    return Path(runner.work_dir)
