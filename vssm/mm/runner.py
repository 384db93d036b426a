"""mmengine's Runner with checkpoints that are whole or absent, and data workers that a resumed run repeats."""

import logging
import re
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import RUNNERS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader

from vssm.data import StreamedImageDataset
from vssm.mm.checkpoint import is_training, read_checkpoint, replace_atomically
from vssm.mm.classifier import ImageClassifier
from vssm.mm.data_check import check_dataset, check_maps_when_read
from vssm.mm.errors import ConfigError, TrainingError
from vssm.mm.weights import classes_of_heads, load_training, load_weights, unwrap
from vssm.models import CheckpointError
from vssm.nn import compile_module

MMENGINE_HOOKS = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")


@RUNNERS.register_module()
class TaskRunner(Runner):
    """Runner of classification, detection and segmentation; arguments are those of mmengine's ``Runner``."""

    @classmethod
    def from_cfg(cls, cfg: Config) -> "TaskRunner":
        """Build a runner.

        Raises:
            ConfigError: a class that is not there, or one that does not take the arguments of the config.
        """
        try:
            return super().from_cfg(cfg)
        except (KeyError, TypeError, ValueError) as error:
            told = str(error).strip("'\"")
            if not re.search("is not in the .* registry|unexpected keyword|missing .* required|all None or not", told):
                raise
            raise ConfigError(f"the config cannot be built: {told.partition('. Please check')[0]}") from error

    def build_dataloader(
        self, dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build a loader whose workers take their random state from the epoch; for a classifier, of stacked batches.

        See `vssm.mm.hooks.EpochHook`.

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
            raise ConfigError(
                f"there are {len(loader.dataset)} images, fewer than one batch of {loader.batch_size}: "
                "choose a smaller batch_size, or drop_last=False"
            )
        check_classes(unwrap(self.model), loader.dataset)
        check_maps_when_read(loader.dataset)
        return loader

    def build_logger(self, *args: object, **kwargs: object) -> MMLogger:
        """Build mmengine's logger, and let the library's own messages go where it writes.

        Pages of text (the environment, the whole config, the order of hooks) go to the log file only.
        """
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(_is_short)
        library = logging.getLogger("vssm")
        library.handlers = list(logger.handlers)
        library.setLevel(logging.INFO)
        return logger

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        """One of this training's own.

        mmengine keeps visualizers by name, and mmdet's and mmseg's bases give all the same: a second training in a
        process would write its curves into the first one's folder.
        """
        if isinstance(visualizer, dict):
            visualizer = {**visualizer, "name": self.experiment_name}
        return super().build_visualizer(visualizer)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Build the model; see `keep_regions_exact`."""
        model = super().build_model(model)
        keep_regions_exact(model)
        return model

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the loop.

        Raises:
            ConfigError: it counts epochs, and the sampler has no end.
        """
        loop = super().build_train_loop(loop)
        if isinstance(loop, EpochBasedTrainLoop) and isinstance(loop.dataloader.sampler, InfiniteSampler):
            raise ConfigError(
                "an epoch would never end: train_cfg counts epochs and train_dataloader.sampler is an InfiniteSampler; "
                "choose DefaultSampler, or train_cfg=dict(type='IterBasedTrainLoop', max_iters=...)"
            )
        return loop

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Put the model on its device; on the CPU, which has no SyncBatchNorm, with each process's own statistics."""
        return super().wrap_model(
            model_wrapper_cfg, model if torch.cuda.is_available() else revert_sync_batchnorm(model)
        )

    def register_default_hooks(self, hooks: dict[str, Hook | dict | None] | None = None) -> None:
        """Register mmengine's hooks and the config's; None removes one, by mmengine only one of its own."""
        hooks = {name: hook for name, hook in (hooks or {}).items() if hook is not None or name in MMENGINE_HOOKS}
        super().register_default_hooks(hooks)

    def compile_model(self) -> None:
        """Compile the model's forward and backward if the config has ``compile``, which is True or a dict of options.

        mmengine compiles the whole training step, optimiser and logging included; with torch 2.15 the loss then comes
        without a gradient.
        """
        options = self.cfg.get("compile")
        if options:
            compile_module(unwrap(self.model).backbone, **(options if isinstance(options, dict) else {}))
            self.logger.info("The model is compiled on its first steps, which are slow.")

    def _maybe_compile(self, target: str) -> None:
        self.compile_model()

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, *args: object, **kwargs: object) -> None:
        """Write a checkpoint under a temporary name, then rename it.

        Raises:
            TrainingError: the disk is full or cannot be written; earlier checkpoints are intact.
        """
        final = Path(out_dir) / filename
        temporary = final.with_name(f".{final.name}.part")
        try:
            super().save_checkpoint(out_dir, temporary.name, *args, **kwargs)
            replace_atomically(temporary, final)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise TrainingError(
                f"cannot write the checkpoint {final}: {error.strerror or error}; earlier checkpoints there are intact"
            ) from error

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
        if is_training(checkpoint):
            self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
            load_training(model, checkpoint, filename)
        elif self._resume:
            raise CheckpointError(f"{filename} holds weights but no training: start from it without --resume")
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


def _is_short(record: logging.LogRecord) -> bool:
    return record.getMessage().count("\n") < 10
