"""mmengine's training loops, which can go on in the middle of an epoch and never load a batch to throw it away."""

import itertools
from collections.abc import Iterator

from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner.utils import calc_dynamic_intervals
from torch import nn
from torch.utils.data import DataLoader

from vssm.mm.runtime.seeding import STREAM, SeededBatchSampler, seed_for, seed_generators


def batches_from(loader: DataLoader, seed: int, turn: int, skip: int) -> Iterator[dict]:
    """One turn through the data.

    Args:
        loader: of the training.
        seed: of the training.
        turn: number of the turn, for random numbers of its own.
        skip: number of batches to leave out. Of a stream, which has no random access, they are read and dropped.
    """
    if isinstance(loader.batch_sampler, SeededBatchSampler):
        loader.batch_sampler.start_at(seed, turn, skip)
        return iter(loader)
    seed_generators(seed_for(seed, STREAM, turn))  # PyTorch seeds the workers from here
    return itertools.islice(loader, skip, None)


@LOOPS.register_module()
class EpochLoop(EpochBasedTrainLoop):
    """A training that counts epochs; arguments are those of mmengine's ``EpochBasedTrainLoop``."""

    def run_epoch(self) -> None:
        """Run one epoch, or the rest of one that was interrupted."""
        done = self._iter - self._epoch * len(self.dataloader)
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        batches = batches_from(self.dataloader, self.runner.seed, self._epoch, done)
        for index, batch in enumerate(batches, done):
            self.run_iter(index, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    @property
    def validation_is_due(self) -> bool:
        """Whether a validation belongs to this point, at the end of an epoch."""
        at_end = self._iter == self._epoch * len(self.dataloader)
        turn = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        return at_end and self._epoch >= max(1, self.val_begin) and turn


@LOOPS.register_module()
class StepLoop(IterBasedTrainLoop):
    """A training that counts steps; arguments are those of mmengine's ``IterBasedTrainLoop``.

    mmengine's loop starts its data workers before it knows where a resumed training goes on, and then loads every
    batch up to there.
    """

    def __init__(
        self,
        runner: object,
        dataloader: DataLoader | dict,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ) -> None:
        super(IterBasedTrainLoop, self).__init__(runner, dataloader)
        self._max_iters, self._max_epochs = int(max_iters), 1
        self._epoch = self._iter = 0
        # Batches that the training has taken from the data; not its steps where the size of a batch was changed.
        self.taken = 0
        self.val_begin, self.val_interval = val_begin, val_interval
        self.stop_training = False
        self.runner.visualizer.dataset_meta = getattr(self.dataloader.dataset, "metainfo", None)
        self.dynamic_milestones, self.dynamic_intervals = calc_dynamic_intervals(val_interval, dynamic_intervals)

    def run(self) -> nn.Module:
        """Run the training, or the rest of one that was interrupted."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        batches = self._batches()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            batch = next(batches)
            self.taken += 1
            self.run_iter(batch)
            self._decide_current_val_interval()
            if self.runner.val_loop is not None and self.validation_is_due:
                self.runner.val_loop.run()
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    @property
    def validation_is_due(self) -> bool:
        """Whether a validation belongs to this step."""
        turn = self._iter % self.val_interval == 0 or self._iter == self._max_iters
        return self._iter >= max(1, self.val_begin) and turn

    def _batches(self) -> Iterator[dict]:
        """Batches without an end: a sampler that has one starts anew."""
        seeded = isinstance(self.dataloader.batch_sampler, SeededBatchSampler)
        sampler = self.dataloader.batch_sampler.sampler if seeded else None
        first, skip = (0, self.taken) if seeded else divmod(self.taken, len(self.dataloader))
        for turn in itertools.count(first):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(turn)
            for batch in batches_from(self.dataloader, self.runner.seed, turn, skip):
                yield batch
                skip = 0
            skip = self.dataloader.batch_sampler.skip if seeded else 0
