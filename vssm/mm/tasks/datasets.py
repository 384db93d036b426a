"""Registers the data sets of vssm.data, and timm's sampler for repeated augmentation."""

from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS, DATASETS
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import Dataset

from vssm import data


class _WithClasses:
    """Gives mmengine the names of the classes, which it saves in checkpoints."""

    @property
    def metainfo(self) -> dict:
        """``classes``, in the order of the labels; None if the reader does not know them."""
        return {"classes": None if self.classes is None else list(self.classes)}


@DATASETS.register_module()
class ImageDataset(_WithClasses, data.ImageDataset):
    """See `vssm.data.ImageDataset`."""


@DATASETS.register_module()
class StreamedImageDataset(_WithClasses, data.StreamedImageDataset):
    """See `vssm.data.StreamedImageDataset`; its loader has ``sampler=None``."""


@DATASETS.register_module()
class ShapesDataset(_WithClasses, data.ShapesDataset):
    """See `vssm.data.ShapesDataset`."""


@DATA_SAMPLERS.register_module()
class RepeatedAugmentationSampler(RepeatAugSampler):
    """Repeats each image several times per epoch, each on another process and so with another augmentation.

    An epoch has as many samples as without repetition, so with three repeats it sees a third of the images. Source:
    DeiT (arXiv 2012.12877), through ``timm.data.RepeatAugSampler``, which has no seed.

    Args:
        dataset: what is sampled.
        seed: of the order, the same on all processes.
        num_repeats: how often each image is repeated.

    Example:
        >>> sampler = RepeatedAugmentationSampler(range(6), seed=0)
        >>> len(sampler), len(set(sampler))
        (6, 2)
    """

    def __init__(self, dataset: Dataset, seed: int | None = None, num_repeats: int = 3) -> None:
        rank, world_size = get_dist_info()
        super().__init__(dataset, num_replicas=world_size, rank=rank, num_repeats=num_repeats)
        self.seed = seed or 0
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        super().set_epoch(self.seed + epoch)
