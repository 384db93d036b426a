"""Random numbers of data workers, and of augmentations that have generators of their own."""

from collections.abc import Iterator

import torch
from mmengine.registry import FUNCTIONS
from torch.utils.data import Dataset, get_worker_info


@FUNCTIONS.register_module()
def keep_epoch_seed(worker_id: int) -> None:
    """Keep the random state that PyTorch gave a data worker at the start of the epoch.

    mmengine's own ``worker_init_fn`` seeds workers the same in every epoch, which repeats the augmentations.
    """
    torch.set_num_threads(1)
    seed_albumentations(get_worker_info().dataset, torch.initial_seed())


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
    for part in (*getattr(dataset, "datasets", ()), getattr(dataset, "dataset", None)):
        if part is not None:
            yield from transforms_of(part)
    yield from _inner_transforms(getattr(dataset, "pipeline", None))


def _inner_transforms(parent: object) -> Iterator[object]:
    """The transforms inside a transform; RandomChoice has lists of lists."""
    inner = getattr(parent, "transforms", ())
    for transform in inner if isinstance(inner, list | tuple) else (inner,):
        yield transform
        yield from _inner_transforms(transform)
