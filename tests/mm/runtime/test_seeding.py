"""Random numbers of a training depend on seed, step and process, on nothing before, and not on the data workers."""

import random

import numpy
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import Hook
from torch.utils.data import DataLoader, Dataset

from vssm.data import ensure_shapes
from vssm.data.layouts import ADE20K, COCO, IMAGE_FOLDER
from vssm.mm.runtime.loops import batches_from
from vssm.mm.runtime.seeding import SeededBatchSampler


class Draws(Dataset):
    """Item i is i and one number of each generator."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.tensor([index, torch.rand(()).item(), numpy.random.rand(), random.random()])


def batches(workers: int, turn: int = 0, skip: int = 0, **options) -> list[torch.Tensor]:
    sampler = SeededBatchSampler(DefaultSampler(Draws(), shuffle=True, seed=0), batch_size=3)
    loader = DataLoader(Draws(), batch_sampler=sampler, num_workers=workers, **options)
    return list(batches_from(loader, 7, turn, skip))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_whoever_loads_them(workers):
    expected = batches(workers=0)
    torch.manual_seed(123)
    for one, other in zip(expected, batches(workers), strict=True):
        assert torch.equal(one, other)
    numbers = torch.cat(expected)[:, 1:]
    assert len(numbers.unique()) == numbers.numel()


def test_a_turn_goes_on_anywhere_and_turns_differ():
    whole = batches(workers=0)
    for skip in range(len(whole) + 1):
        rest = batches(workers=0, skip=skip)
        assert len(rest) == len(whole) - skip
        assert all(torch.equal(one, other) for one, other in zip(whole[skip:], rest, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(whole, batches(0, turn=1), strict=True))


def test_persistent_workers_change_nothing():
    sampler = SeededBatchSampler(DefaultSampler(Draws(), shuffle=True, seed=0), batch_size=3)
    loader = DataLoader(Draws(), batch_sampler=sampler, num_workers=1, persistent_workers=True)
    for turn in range(2):
        for one, other in zip(batches_from(loader, 7, turn, 0), batches(0, turn), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("sampler", [InfiniteSampler, DefaultSampler])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_by_steps_goes_on_with_the_same_batches(make_runner, sampler, workers):
    """Also over the end of the data, where a finite sampler starts anew."""
    seen = {}

    class Record(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            value = (data_batch["inputs"].double().sum().item(), tuple(data_batch["path"]))
            assert seen.setdefault(batch_idx, value) == value

    def runner_until(steps):
        runner = make_runner(
            train_cfg={"_delete_": True, "by_epoch": False, "max_iters": steps, "val_interval": 100},
            train_dataloader__sampler={"type": sampler.__name__, "shuffle": True},
            train_dataloader__num_workers=workers,
            train_dataloader__dataset__transform={"is_training": True, "type": "TimmTransform", "input_size": 32},
            default_hooks__checkpoint__interval=100,
            log_processor={"by_epoch": False},
        )
        runner.register_hook(Record())
        return runner

    whole = runner_until(11)
    whole.train()
    assert len(seen) == 11
    for taken in (2, 4, 9):
        rest = runner_until(11)
        rest._train_loop = rest.build_train_loop(rest._train_loop)
        rest.train_loop._iter = rest.train_loop.taken = taken
        rest.train()
    assert len(seen) == 11


@pytest.mark.parametrize("layout", [IMAGE_FOLDER, COCO, ADE20K])
@pytest.mark.parametrize("image_size", [32, 512])  # without and with processes that draw
def test_drawing_the_embedded_set_takes_no_random_numbers(layout, image_size, tmp_path):
    random.seed(0), numpy.random.seed(0), torch.manual_seed(0)
    before = random.getstate(), numpy.random.get_state()[1].copy(), torch.get_rng_state()
    ensure_shapes(tmp_path, train=10, val=10, image_size=image_size, layout=layout)
    assert random.getstate() == before[0]
    assert (numpy.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])


def test_the_first_run_of_a_seed_is_like_the_second(make_runner, tmp_path):
    """The first draws its data. Whatever else takes random numbers before the weights are drawn changes nothing."""
    losses = []
    for _ in range(2):
        runner = make_runner(
            train_dataloader__dataset__root=str(tmp_path / "new"),
            val_dataloader__dataset__root=str(tmp_path / "new"),
            train_cfg__max_epochs=1,
        )
        torch.rand(len(losses))
        runner.train()
        losses.append(list(runner.message_hub.get_scalar("train/loss").data[0]))
    assert losses[0] == losses[1]
