"""The runner of all tasks: data are compared with the model before the first step, and weights fit or are refused."""

from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from vssm.data import StreamedImageDataset
from vssm.errors import ConfigError
from vssm.inference.saved import is_training, read_checkpoint
from vssm.mm.runtime.checkpoint import check_bookkeeping
from vssm.mm.runtime.resume import check_complete
from vssm.mm.runtime.runner import SafeRunner, unwrap
from vssm.mm.tasks.classifier import ImageClassifier
from vssm.mm.tasks.data_check import check_dataset, check_maps_when_read
from vssm.mm.tasks.weights import classes_of_heads, load_training, load_weights


@RUNNERS.register_module()
class TaskRunner(SafeRunner):
    """Runner of classification, detection and segmentation; arguments are those of mmengine's ``Runner``."""

    def build_dataloader(
        self, dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build a loader whose workers end with their parent; for a classifier, of stacked batches.

        See `vssm.mm.runtime.seeding`.

        Raises:
            ConfigError: no data there, data that do not fit the options, or other classes than the model's.
        """
        if isinstance(dataloader, dict):
            dataloader = {"worker_init_fn": {"type": "keep_epoch_seed"}, **dataloader}
            if isinstance(unwrap(self.model), ImageClassifier):
                dataloader = {"collate_fn": {"type": "default_collate"}, **dataloader}
        try:
            if isinstance(dataloader, dict) and isinstance(dataloader["dataset"], dict):
                check_dataset(dataloader["dataset"])
            loader = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        except (ValueError, OSError, ImportError) as error:
            raise ConfigError(f"data: {error}") from error
        if isinstance(loader.dataset, StreamedImageDataset):
            loader.dataset.set_workers(loader.num_workers)
        if len(loader) == 0:
            size = loader.batch_size or loader.batch_sampler.batch_size
            raise ConfigError(
                f"there are {len(loader.dataset)} images, fewer than one batch of {size}: "
                "choose a smaller batch_size, or drop_last=False"
            )
        check_classes(unwrap(self.model), loader.dataset)
        check_maps_when_read(loader.dataset)
        return loader

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Build the model; see `keep_regions_exact`."""
        model = super().build_model(model)
        keep_regions_exact(model)
        return model

    def load_checkpoint(
        self, filename: str, map_location: str = "cpu", strict: bool = True, revise_keys: list | None = None
    ) -> dict:
        """Load all the weights of a file, or none.

        Args:
            filename: a checkpoint of a training, or weights: of the model, or for a classifier of its backbone, in our
                layout or the official one.
            map_location: unused, for mmengine's sake: a checkpoint is read on the CPU and copied into the model.
            strict: unused, for mmengine's sake: a checkpoint always has to fit.
            revise_keys: unused, for mmengine's sake.

        Returns:
            The checkpoint.

        Raises:
            CheckpointError: the file cannot be read, or does not fit.
        """
        model = unwrap(self.model)
        checkpoint = read_checkpoint(filename)
        if self._resume:
            check_complete(checkpoint, filename)
        if is_training(checkpoint):
            check_bookkeeping(checkpoint, filename)
            self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
            load_training(model, checkpoint, filename)
        else:
            load_weights(model, filename)
        self._has_loaded = True
        self.logger.info(f"Load checkpoint from {filename}")
        return checkpoint


def keep_regions_exact(model: nn.Module) -> None:
    """Give mmdet's region extractors maps in float32, in mixed precision too.

    They round the regions of interest to the precision of the maps, which in bfloat16 is 4 pixels at 1000.
    """
    for part in model.modules():
        if hasattr(part, "roi_layers"):
            part.register_forward_pre_hook(_maps_in_float32)


def _maps_in_float32(extractor: nn.Module, arguments: tuple) -> tuple:
    maps, *others = arguments
    return ([each.float() for each in maps], *others)


def check_classes(model: nn.Module, dataset: object) -> None:
    """Compare the number of classes of a data set with that of a model.

    Raises:
        ConfigError: a classifier has fewer, or a head of a detector or segmentor other ones; names the option.
    """
    if isinstance(model, ImageClassifier):
        count, own = getattr(dataset, "num_classes", None), model.backbone.num_classes
        wrong = ["backbone"] if count is not None and count > own else []
    else:
        count = len((getattr(dataset, "metainfo", None) or {}).get("classes") or ())
        heads = classes_of_heads(model)
        wrong = [name for name, classes in heads.items() if count and classes != count]
        own = heads[wrong[0]] if wrong else None
    if wrong:
        options = " and ".join(f"model.{name}.num_classes={count}" for name in wrong)
        raise ConfigError(f"the data have {count} classes, but the model {own}: set {options}")
