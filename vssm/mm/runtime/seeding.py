"""Random numbers of a training: a function of the seed, the step and the process, and of nothing that came before.

A training that was interrupted at any step then goes on with the same numbers, whatever its number of data workers.
"""

import random
from collections.abc import Iterator

import numpy
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from mmengine.registry import DATA_SAMPLERS, FUNCTIONS
from torch.utils.data import BatchSampler, Dataset, Sampler, get_worker_info

from vssm.processes import protect_worker

# What a seed is for; each purpose has random numbers of its own.
WEIGHTS, STEP, BATCH, STREAM = range(4)


@FUNCTIONS.register_module()
def keep_epoch_seed(worker_id: int) -> None:
    """Prepare a data worker: one thread, tied to its parent, random state from the parent.

    mmengine's own ``worker_init_fn`` seeds workers the same in every epoch, which repeats the augmentations.
    """
    protect_worker()
    torch.set_num_threads(1)
    seed_albumentations(get_worker_info().dataset, torch.initial_seed())


def seed_for(seed: int, purpose: int, *place: int) -> int:
    """A seed of 32 bits for one purpose at one place of a training, in this process.

    >>> seed_for(0, STEP, 1) == seed_for(0, STEP, 1), seed_for(0, STEP, 1) == seed_for(0, STEP, 2)
    (True, False)
    """
    return int(numpy.random.SeedSequence([seed, purpose, *place, get_rank()]).generate_state(1)[0])


def seed_generators(seed: int) -> None:
    """Seed Python, NumPy and PyTorch, on the CPU and on GPUs.

    6 us; ``torch.manual_seed`` takes 400 us where CUDA is not in use, as it notes for CUDA who called.
    """
    random.seed(seed)
    numpy.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class SeededBatch(list):
    """The indices of a batch. Whoever iterates over them, to load the images, has seeded its generators with it.

    Args:
        indices: of the images.
        seed: of all random numbers that loading them takes.
        dataset: for its albumentations, where the main process loads. It stays there: workers have their own.
    """

    def __init__(self, indices: list[int], seed: int, dataset: Dataset | None = None) -> None:
        super().__init__(indices)
        self.seed, self.dataset = seed, dataset

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        seed_generators(self.seed)
        seed_albumentations(self.dataset if worker is None else worker.dataset, self.seed)
        return super().__iter__()

    def __reduce__(self) -> tuple:
        return SeededBatch, (self[:], self.seed)


@DATA_SAMPLERS.register_module()
class SeededBatchSampler:
    """Batches that carry their seeds, and that can begin in the middle without loading what comes before.

    Args:
        sampler: of indices.
        batch_size: of each process.
        drop_last: leave out a last batch that is not full.
        batches: configuration of a batch sampler to use, such as mmdet's ``AspectRatioBatchSampler``.

    Example:
        >>> sampler = SeededBatchSampler(range(6), batch_size=2)
        >>> sampler.start_at(seed=0, turn=0, skip=1)
        >>> [batch[:] for batch in sampler]
        [[2, 3], [4, 5]]
    """

    def __init__(self, sampler: Sampler, batch_size: int, drop_last: bool = False, batches: dict | None = None) -> None:
        self.sampler, self.batch_size = sampler, batch_size
        self.batches = (
            BatchSampler(sampler, batch_size, drop_last)
            if batches is None
            else DATA_SAMPLERS.build(batches, default_args={"sampler": sampler, "batch_size": batch_size})
        )
        self.start_at(seed=0, turn=0, skip=0)

    @property
    def last_batch(self) -> int | None:
        """The size of the last batch of a turn; None where there is none, or it is not known before."""
        if type(self.batches) is not BatchSampler or isinstance(self.sampler, InfiniteSampler):
            return None
        return (not self.batches.drop_last and len(self.sampler) % self.batch_size) or self.batch_size

    def start_at(self, seed: int, turn: int, skip: int) -> None:
        """Set the seed of a training, the number of this turn through the data, and how many batches to leave out."""
        self.seed, self.turn, self.skip = seed, turn, skip

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[SeededBatch]:
        dataset = getattr(self.sampler, "dataset", None)
        for number, indices in enumerate(self.batches):
            if self.skip > 0:
                self.skip -= 1  # what remains at the end of the data is left out of the next turn
            else:
                yield SeededBatch(indices, seed_for(self.seed, BATCH, self.turn, number), dataset)


def seed_albumentations(dataset: Dataset, seed: int) -> None:
    """Seed the ``Albu`` transforms of mmdet and mmseg in a data set.

    Albumentations has its own random generators: without this, all workers draw the same numbers, again in every
    epoch, and other ones in every run whatever its seed.

    Args:
        dataset: a data set, or a wrapper of data sets.
        seed: the lower 32 bits are used.
    """
    for place, transform in enumerate(transforms_of(dataset)):
        pipeline = getattr(transform, "aug", None)
        if hasattr(pipeline, "set_random_seed"):
            pipeline.set_random_seed((seed + place) % 2**32)


def transforms_of(dataset: Dataset) -> Iterator[object]:
    """The transforms of a data set of mmdet or mmseg, also inside wrappers."""
    for part in with_inner(dataset):
        yield from _inner_transforms(getattr(part, "pipeline", None))


def with_inner(dataset: Dataset) -> Iterator[Dataset]:
    """The data sets inside a wrapper, such as one that repeats or joins others, and then the data set itself."""
    for inner in (*getattr(dataset, "datasets", ()), getattr(dataset, "dataset", None)):
        if inner is not None:
            yield from with_inner(inner)
    yield dataset


def _inner_transforms(parent: object) -> Iterator[object]:
    """The transforms inside a transform, or in a list, which mmdet's data set of mixed images has for a pipeline."""
    inner = parent if isinstance(parent, list | tuple) else getattr(parent, "transforms", ())
    for transform in inner if isinstance(inner, list | tuple) else (inner,):
        yield transform
        yield from _inner_transforms(transform)
