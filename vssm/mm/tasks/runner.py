"""The runner of all tasks: data are compared with the model before the first step, and weights fit or are refused."""

from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook
from mmengine.registry import RUNNERS
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from vssm import models
from vssm.data import DataError, ImageDataset, StreamedImageDataset
from vssm.data.checks import check_present
from vssm.data.classes import some
from vssm.data.coco import leave_out_lines
from vssm.errors import ConfigError
from vssm.inference.saved import classes_of, is_training, read_checkpoint
from vssm.mm.runtime.checkpoint import check_bookkeeping
from vssm.mm.runtime.distributed import unwrap
from vssm.mm.runtime.resume import check_complete, classes_of_data
from vssm.mm.runtime.runner import SafeRunner
from vssm.mm.tasks.classifier import ImageClassifier, Teacher, check_pairs
from vssm.mm.tasks.data_check import Use, ids_of_classes, prepare_dataset
from vssm.mm.tasks.precision import keep_logits_exact, keep_regions_exact
from vssm.mm.tasks.reading import read_by_our_rules
from vssm.mm.tasks.scoring import check_told_apart, tell_ids, try_scores
from vssm.mm.tasks.weights import check_parts, classes_of_heads, load_training, load_weights, trained_weights
from vssm.models import CheckpointError


@RUNNERS.register_module()
class TaskRunner(SafeRunner):
    """Runner of classification, detection and segmentation; arguments are those of mmengine's ``Runner``.

    The classes are those of the checkpoint that is resumed or tested, or else of the training set; labels of every
    data set go by their names.
    """

    _classes: tuple[str, ...] | None = None
    _use = Use()

    def train(self) -> nn.Module:
        """Train; data, metrics and model are compared before the first step."""
        if self._resume and self._load_from is not None:
            self._classes = self._saved_classes()
        return super().train()

    def test(self) -> dict:
        """Evaluate a checkpoint by the names of its classes."""
        if self._load_from is not None:
            self._classes = self._saved_classes()
        return super().test()

    def _saved_classes(self) -> tuple[str, ...] | None:
        """The classes of the checkpoint to start from; None for weights alone.

        Raises:
            CheckpointError: it cannot be read, or is one of another model.
        """
        checkpoint = read_checkpoint(self._load_from)
        if not is_training(checkpoint):
            return None
        weights = models.weights_in(checkpoint.get("state_dict"), self._load_from)
        check_parts(unwrap(self.model), weights, self._load_from)
        return classes_of(checkpoint)

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the loop of training."""
        self._use = Use(classes=self._classes, ignored_by=ignored_by_heads(unwrap(self.model)))
        loop = super().build_train_loop(loop)
        model, data = unwrap(self.model), loop.dataloader
        if not isinstance(model, ImageClassifier):
            data.dataset[0]  # what a pipeline cannot do is told here, not by a worker
        if isinstance(teacher := getattr(model, "teacher", None), Teacher):  # which is loaded after this
            transform = getattr(data.dataset, "transform", None)
            teacher.classes, teacher.normalised = self._classes, getattr(transform, "normalised", None)
        preprocessor = getattr(model, "data_preprocessor", None)
        if getattr(preprocessor, "mixup", None) is not None and len(data) <= loop.max_iters:
            check_pairs(getattr(data.batch_sampler, "last_batch", None) or 0)
        return loop

    def build_val_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the loop of validation; see `_build_scored`."""
        return self._build_scored(super().build_val_loop, loop, self._val_evaluator, "val_evaluator")

    def build_test_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the loop of a test; see `_build_scored`."""
        return self._build_scored(super().build_test_loop, loop, self._test_evaluator, "test_evaluator")

    def _build_scored(
        self, build: Callable[[dict], BaseLoop], loop: BaseLoop | dict, evaluator: object, option: str
    ) -> BaseLoop:
        """Build a loop whose predictions are scored, after a check of what its metrics will ask.

        Raises:
            ConfigError: a metric's annotation file is missing or of other images, or it asks for masks that the model
                does not predict.
        """
        metrics = [part for part in (evaluator if isinstance(evaluator, list) else [evaluator]) if _is_metric(part)]
        files = tuple(part["ann_file"] for part in metrics if part.get("ann_file"))
        masks = any("segm" in part.get("metric", ()) and not part.get("format_only") for part in metrics)
        learnt = getattr(getattr(self._train_loop, "dataloader", None), "dataset", None)
        self._use = Use(
            is_training=False,
            reduced=getattr(learnt, "reduce_zero_label", None),
            classes=self._classes,
            scored=any(not part.get("format_only") for part in metrics),
            masks=masks,
            score_files=files,
            ignored_by=tuple(
                (f"{option}.ignore_index", part.get("ignore_index", 255))
                for part in metrics
                if str(part["type"]).endswith("IoUMetric")
            ),
        )
        try:
            check_present([Path(file) for file in files if "://" not in file], f"set {option}.ann_file")
            if masks and not predicts_masks(unwrap(self.model)):
                raise DataError(
                    f"{option} asks for the score of masks (metric 'segm'), and the model predicts boxes only: set "
                    f"{option}.metric=bbox"
                )
            loop = build(loop)
            check_every_image(loop.dataloader, f"{option.removesuffix('evaluator')}dataloader")
            for metric in loop.evaluator.metrics:
                check_told_apart(metric, loop.dataloader.dataset)
                if getattr(metric, "_coco_api", None) is not None:
                    score_by_name(metric, loop.dataloader.dataset, f"{option}.ann_file")
                tell_ids(metric, option)
        except DataError as error:
            raise ConfigError(f"data: {error}") from error
        return loop

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
                dataloader = {**dataloader, "dataset": prepare_dataset(dataloader["dataset"], self._use)}
            loader = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
            if isinstance(loader.dataset, ImageDataset) and not loader.dataset.skip_bad_images and is_main_process():
                loader.dataset.check_sample()
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
        self._check_known(loader.dataset, dataloader)
        self._keep_classes(loader.dataset)
        if not isinstance(unwrap(self.model), ImageClassifier):
            read_by_our_rules(loader.dataset)
        return loader

    def _check_resumed(self, checkpoint: dict, path: str) -> None:
        """Refuse to go on with other classes, where the checkpoint was found after the data sets were built.

        Raises:
            CheckpointError: gives both.
        """
        saved = classes_of(checkpoint)
        if self._resume and saved and self._classes and saved != self._classes:
            raise CheckpointError(
                f"{path} was trained on the classes {some(saved)} ({len(saved)} in all), and the data have "
                f"{some(self._classes)} ({len(self._classes)}), or in another order; give the file with --resume"
            )

    def _check_known(self, dataset: object, config: DataLoader | dict) -> None:
        """Refuse to score a classifier whose outputs have no names on a set of fewer classes.

        Raises:
            ConfigError: gives both numbers, and the option that says which classes these are.
        """
        model, names = unwrap(self.model), getattr(dataset, "classes", None)
        if self._classes or self._use.is_training or not names or not isinstance(model, ImageClassifier):
            return
        own = model.backbone.num_classes
        if len(names) != own and "classes" not in config["dataset"]:
            raise ConfigError(
                f"{dataset.source} has {len(names)} classes ({some(names)}), and the model {own} whose names are not "
                "known, as the training's data or the file of weights have none: name those, in the order of the "
                "outputs, with dataset.classes=[...]"
            )

    def _keep_classes(self, dataset: object) -> None:
        """Take the classes of the first data set for those of all, and refuse a later one with others.

        Raises:
            ConfigError: names what differs.
        """
        found = classes_of_data(dataset)
        if self._classes is None:
            self._classes = found or None
        elif found and found != self._classes:
            others = [name for name in found if name not in self._classes] or list(found)
            raise ConfigError(
                f"the data have other classes than the training, or in another order: {some(others)}; expected "
                f"{some(self._classes)} ({len(self._classes)} in all)"
            )

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Build the model; see `keep_regions_exact` and `keep_logits_exact`."""
        model = super().build_model(model)
        keep_regions_exact(model)
        keep_logits_exact(model)
        return model

    def load_or_resume(self) -> None:
        """Load weights or go on with a training, and predict and score one image as the first validation will.

        What the model, the pipeline or the metrics of a validation cannot use would otherwise end the training after
        an epoch, and a test after its last image.
        """
        super().load_or_resume()
        for loop, model, step, option in (
            (self._val_loop, unwrap(self.model), "val_step", "val_evaluator"),
            (self._test_loop, self.model, "test_step", "test_evaluator"),  # with test-time augmentation
        ):
            loader = getattr(loop, "dataloader", None)
            if loader is not None and not isinstance(loader.dataset, IterableDataset):
                training, batch = model.training, loader.collate_fn([loader.dataset[0]])
                with torch.no_grad():
                    samples = getattr(model.eval(), step)(batch)
                model.train(training)
                try_scores(self, loop.evaluator, batch, samples, option)

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
            self._check_resumed(checkpoint, filename)
            trained = trained_weights(model, checkpoint, filename) if self._resume else None
            if trained is not None and not any(isinstance(hook, EMAHook) for hook in self.hooks):
                self.logger.warning(
                    f"resumed: {filename} is of a training that averages its weights, and this one does not "
                    "(default_hooks.ema): it goes on from those that were trained, and the averages are lost"
                )
                checkpoint["state_dict"] = trained
            self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
            load_training(model, checkpoint, filename)
        else:
            load_weights(model, filename)
        self._has_loaded = True
        self.logger.info(f"Load checkpoint from {filename}")
        return checkpoint


def check_classes(model: nn.Module, dataset: object) -> None:
    """Compare the number of classes of a data set with that of a model.

    Raises:
        ConfigError: a classifier has fewer, or a head of a detector or segmentor other ones; names classes and option.
    """
    names = classes_of_data(dataset)
    if isinstance(model, ImageClassifier):
        count, own = getattr(dataset, "num_classes", None) or len(names), model.backbone.num_classes
        wrong = ["backbone"] if count > own else []
    else:
        count, heads = len(names), classes_of_heads(model)
        wrong = [name for name, classes in heads.items() if count and classes != count]
        own = heads[wrong[0]] if wrong else None
    if wrong:
        options = " and ".join(f"model.{name}.num_classes={count}" for name in wrong)
        source = getattr(dataset, "source", None) or getattr(dataset, "ann_file", None)
        told = f"; the data's are {some(names)}{f', from {source}' if source else ''}" if names else ""
        raise ConfigError(f"the data have {count} classes, but the model {own}: set {options}{told}")
    for name, part in model.named_modules():
        weights = getattr(part, "class_weight", None)
        if isinstance(weights, list | tuple) and "loss" in name and count and len(weights) not in (count, count + 1):
            raise ConfigError(f"model.{name}.class_weight has {len(weights)} numbers, but the data {count} classes")


def check_every_image(loader: DataLoader, option: str) -> None:
    """Refuse a loader for scores that leaves images out, repeats them, or never ends.

    Raises:
        DataError: names the option.
    """
    if isinstance(loader.sampler, InfiniteSampler):
        raise DataError(f"{option}.sampler is an InfiniteSampler, and an evaluation ends: choose DefaultSampler")
    if not isinstance(loader.dataset, IterableDataset) and len({*loader.sampler}) < len(loader.sampler):
        raise DataError(
            f"{option}.sampler, a {type(loader.sampler).__name__}, repeats some images and leaves others out: "
            "choose DefaultSampler"
        )
    if loader.drop_last:
        images = len(loader.dataset if isinstance(loader.dataset, IterableDataset) else loader.sampler)
        if left_out := images % loader.batch_size:
            raise DataError(f"{option}.drop_last=True leaves {left_out} of {images} images unscored: set it to False")


def _is_metric(part: object) -> bool:
    return isinstance(part, dict) and "type" in part


def predicts_masks(model: nn.Module) -> bool:
    """Whether a detector predicts masks: it has a part for them."""
    names = [name for name, _ in model.named_modules() if not name.startswith("backbone.")]
    return any(word in name for name in names for word in ("mask", "panoptic", "seg"))


def ignored_by_heads(model: nn.Module) -> tuple[tuple[str, int], ...]:
    """The label that each head of a segmentor ignores, after the option that says so; losses may ignore a class too."""
    heads = [(name, part) for name, part in model.named_modules() if "head" in name and "loss" not in name]
    found = [(f"model.{name}.ignore_index", getattr(part, "ignore_index", None)) for name, part in heads]
    return tuple((option, label) for option, label in found if isinstance(label, int))


def score_by_name(metric: object, dataset: object, option: str) -> None:
    """Let mmdet's CocoMetric find the categories of its annotation file by the names of the classes.

    It would take them in the order of the file, and miss the objects of images that are not evaluated, as where the
    data set has ``indices``. Annotations are numbered from 1: pycocotools takes the id 0 for an
    object that was not found, and texts not at all, nor null for what is no crowd, nor masks that are lines.

    Args:
        metric: a CocoMetric with an annotation file of its own.
        dataset: that is evaluated.
        option: of the config, which names the file.

    Raises:
        DataError: the file is of other images.
    """
    annotations = metric._coco_api
    objects = annotations.dataset.get("annotations", ())
    for number, each in enumerate(objects, 1):
        each["id"], each["iscrowd"] = number, each.get("iscrowd") or 0
    if "segm" in getattr(metric, "metrics", ()):
        leave_out_lines(objects)
    annotations.anns = {each["id"]: each for each in objects}
    if hasattr(dataset, "get_data_info"):
        images = [info.get("img_id") for info in map(dataset.get_data_info, range(len(dataset)))]
        known = set(annotations.getImgIds())
        unknown = [image for image in images if image not in known]
        if unknown:
            raise DataError(
                f"{option} has no image with the id {some(unknown)}, which the data set has: give it the annotation "
                "file of the data set"
            )
        metric.img_ids = list(dict.fromkeys(images))
    names = classes_of_data(dataset)
    if names and getattr(metric, "cat_ids", ()) is None:
        ids = ids_of_classes(annotations, names)
        for name, key in ids.items():
            annotations.cats.setdefault(key, {"id": key, "name": name})
        metric.cat_ids = list(ids.values())
