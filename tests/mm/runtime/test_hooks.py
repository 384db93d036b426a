"""Hooks of a training."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import CosineAnnealingLR, LinearLR
from timm.scheduler import CosineLRScheduler

from vssm.data import StreamedImageDataset
from vssm.errors import ConfigError, TrainingError
from vssm.mm.runtime.config import load_config
from vssm.mm.runtime.hooks import EpochHook

SCHEDULES = Path(__file__).resolve().parents[3] / "configs/_base_/schedules"


class Poison(Hook):
    """Makes the weights infinite before a step."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 5:
            with torch.no_grad():
                runner.model.backbone.head.bias.fill_(math.inf)


def test_a_loss_that_is_not_finite_stops_the_training(make_runner):
    runner = make_runner()
    runner.register_hook(Poison())
    with pytest.raises(TrainingError, match=r"loss is nan at step 6 \(epoch 2\).*epoch_1.pth"):
        runner.train()


def test_throughput_is_logged(make_runner):
    runner = make_runner(train_cfg__max_epochs=1)
    runner.train()
    speeds, _ = runner.message_hub.get_scalar("train/images_per_second").data
    assert len(speeds) == 4 and (speeds > 0).all()


def test_persistent_workers_of_a_stream_are_refused():
    """They carry random state from epoch to epoch; the batches of other data carry their own."""
    loader = SimpleNamespace(dataset=object.__new__(StreamedImageDataset), persistent_workers=True)
    with pytest.raises(ConfigError, match="persistent_workers"):
        EpochHook().before_train_epoch(SimpleNamespace(train_dataloader=loader, max_epochs=2))


def rates(schedulers: list[dict], epochs: int, steps: int) -> list[float]:
    """The rate of each epoch's first step, base 1e-3, for schedulers by epochs or by steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    built = []
    for options in schedulers:
        options = dict(options)
        kind = {"LinearLR": LinearLR, "CosineAnnealingLR": CosineAnnealingLR}[options.pop("type")]
        if options.pop("convert_to_iter_based", False):
            built.append(kind.build_iter_from_epoch(optimizer, epoch_length=steps, **options))
        else:
            built.append(kind(optimizer, **options))
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in built:
            for _ in range(1 if scheduler.by_epoch else steps):
                scheduler.step()
    return found


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("deit_300e", {"t_initial": 300, "warmup_t": 5}, 1e-3),
        ("swin_300e", {"t_initial": 280, "warmup_t": 20, "warmup_prefix": True}, 1e-2),
    ],
)
def test_schedules_are_the_published_ones(name, options, tolerance):
    """timm's scheduler, which both official trainings call, against our configs."""
    config = load_config(SCHEDULES / f"{name}.py")
    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = CosineLRScheduler(reference, lr_min=1e-5, warmup_lr_init=1e-6, **options)
    expected = []
    for epoch in range(300):
        scheduler.step(epoch)
        expected.append(reference.param_groups[0]["lr"])
    assert rates(config.param_scheduler, 300, steps=10) == pytest.approx(expected, rel=tolerance)


def test_mambavisions_rate_stays_lowest_for_ten_epochs():
    config = load_config(SCHEDULES / "mambavision_310e.py")
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, config.train_cfg.max_epochs) == ("Lamb", 5e-3, 310)
    found = [5 * rate for rate in rates(config.param_scheduler, 310, steps=10)]
    assert (found[0], found[20], found[160]) == pytest.approx((1e-6, 5e-3, (5e-3 + 5e-6) / 2), rel=1e-2)
    assert found[300:] == pytest.approx([5e-6] * 10, rel=1e-3)
