"""Checks the data sets of mmdet's and mmseg's configs, and numbers their classes as the training's are.

All of it happens before a data set is built, so before the first step.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from mmengine.dataset import BaseDataset
from mmengine.dist import is_main_process
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS, DefaultScope

from vssm.data import DataError, ImageDataset, StreamedImageDataset
from vssm.data.checks import check_present
from vssm.data.class_maps import check_class_maps, check_contents, list_pairs, pair_files
from vssm.data.classes import check_distinct, lines_in, some
from vssm.data.coco import leave_out_lines
from vssm.data.coco_check import CocoUse, category_ids, check_coco
from vssm.mm.tasks.reading import is_upright, meaning_of

_logger = logging.getLogger(__name__)

# How to get the data, by the name of the data set's class.
SOURCES = {
    "CocoDataset": (
        "unpack train2017.zip, val2017.zip and annotations_trainval2017.zip of https://cocodataset.org/#download into "
        "data/coco"
    ),
    "ADE20KDataset": (
        "unpack http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip into data/ade, which gives "
        "data/ade/ADEChallengeData2016"
    ),
}
ELSEWHERE = "or let data_root, ann_file and data_prefix of the data set in the config say where the data are"


@dataclass(frozen=True)
class Use:
    """What a data set is for.

    Args:
        is_training: otherwise for evaluation.
        classes: the training's, by which labels go; None for a training set.
        scored: annotations are compared with predictions.
        masks: so are masks.
        score_files: annotation files that the metrics read themselves.
        ignored_by: the label that each head or metric takes for ignored, after the option that says so.
        reduced: the training's reduce_zero_label, for class maps; None where it is not known.
    """

    is_training: bool = True
    classes: tuple[str, ...] | None = None
    scored: bool = False
    masks: bool = False
    score_files: tuple[str, ...] = ()
    ignored_by: tuple[tuple[str, int], ...] = ()
    reduced: bool | None = None


def prepare_dataset(config: dict, use: Use = Use()) -> dict:
    """Check the files of a data set before it is built, and let its labels go by the names of the training's classes.

    Args:
        config: the data set's part of a configuration, wrappers of data sets included.
        use: what it is for.

    Returns:
        The config to build from.

    Raises:
        DataError: names what is missing or wrong, and what to do.
    """
    inner = config.get("datasets") or [config.get("dataset")]
    if any(isinstance(part, dict) and "type" in part and _is_classification(_class_of(part)) for part in inner):
        raise DataError(
            f"{config['type']} is for data sets of mmdet and mmseg, and there is one of classification in it: expected "
            "an ImageDataset alone, of one folder, whose class folders may have links to images elsewhere"
        )
    if config.get("datasets"):
        parts = []
        for part in config["datasets"]:
            parts.append(prepare_dataset(part, use))
            # The first one's classes are those of all that are joined with it.
            use = use if use.classes else replace(use, classes=_declared(parts[-1]))
        return {**config, "datasets": parts}
    if isinstance(config.get("dataset"), dict):
        return {**config, "dataset": prepare_dataset(config["dataset"], use)}
    target = _class_of(config)
    if not inspect.isclass(target):
        return config
    if _is_classification(target):
        return {**config, "classes": use.classes} if use.classes else config
    if not issubclass(target, BaseDataset):
        return config
    config = _by_name(target, config, use)
    check = {"mmdet": _check_detection, "mmseg": _check_segmentation}.get(_scope())
    if check is not None and is_main_process() and not config.get("backend_args"):
        check(target, config, use)
    return config


def _is_classification(target: object) -> bool:
    return inspect.isclass(target) and issubclass(target, ImageDataset | StreamedImageDataset)


def _scope() -> str:
    scope = DefaultScope.get_current_instance()
    return scope.scope_name if scope else ""


def _class_of(config: dict) -> object:
    with DATASETS.switch_scope_and_registry(None) as registry:
        return registry.get(config["type"]) if isinstance(config["type"], str) else config["type"]


def _declared(config: dict) -> tuple[str, ...] | None:
    """The classes that a data set's config gives it, or its class."""
    meta, target = config.get("metainfo") or {}, _class_of(config)
    names = meta.get("classes") or getattr(target, "METAINFO", {}).get("classes")
    return tuple(list_from_file(names) if isinstance(names, str) else names) if names else None


def _by_name(target: type[BaseDataset], config: dict, use: Use) -> dict:
    """The config of a data set whose labels are places in the given classes, or in its own where there are none.

    mmdet numbers a class by where the annotation file has its category, and mmseg by where the config has its name.
    """
    meta, classes = dict(config.get("metainfo") or {}), use.classes
    given = meta.get("classes") or ()
    if isinstance(given, str) and "://" not in given:
        if not Path(given).is_file():
            raise DataError(
                f"metainfo.classes is {given!r}, and there is no such file of names; expected a tuple of names, which "
                f"for one class is ({given!r},)"
            )
        meta["classes"] = tuple(lines_in(given))  # mmengine takes a byte order mark and blank lines for names
        config = {**config, "metainfo": meta}
    check_distinct(_declared(config) or (), _named(target, config))
    if classes:
        own, of_class = meta.get("classes"), getattr(target, "METAINFO", {}).get("classes")
        own = list_from_file(own) if isinstance(own, str) else own
        if own is not None and list(own) != list(classes):
            unknown = [name for name in own if name not in classes]
            if unknown:
                raise DataError(
                    f"{_named(target, config)} has {len(unknown)} classes that are none of the training's: "
                    f"{some(unknown)}; those are {some(classes)} ({len(classes)} in all)"
                )
            if of_class is None:  # otherwise files have the numbers of the class of the data set
                meta["file_classes"] = tuple(own)
        palette = meta.pop("palette", None) if own is None or list(own) != list(classes) else None
        if palette and own and set(own) == set(classes):
            meta["palette"] = [palette[list(own).index(name)] for name in classes]
        elif palette and own is None:
            meta["palette"] = palette
        known = of_class if own is None else own
        if known is None or list(known) != list(classes):
            meta["classes"] = tuple(classes)
            config = {**config, "metainfo": meta}
    if _is_coco(target) or _is_folders(target, config):
        return {**config, "type": _by_our_rules(target, masks=_asks_masks(config, use))}
    return config


def _asks_masks(config: dict, use: Use) -> bool:
    """Whether the masks of objects are used."""
    loaded = any(step.get("with_mask") for step in _loads(config.get("pipeline")))
    return (loaded and (use.is_training or use.scored)) or use.masks


def _named(target: type, config: dict) -> str:
    where = config.get("ann_file") or config.get("data_prefix")
    return f"{target.__name__} of {config.get('data_root') or ''}{f' ({where})' if where else ''}"


def _is_coco(target: type) -> bool:
    if _scope() != "mmdet":
        return False
    from mmdet.datasets import CocoDataset

    return issubclass(target, CocoDataset) and _reads_as(target, CocoDataset)


def _is_folders(target: type[BaseDataset], config: dict) -> bool:
    """Whether a data set is folders of images and class maps, with or without a list of what is in them."""
    if _scope() != "mmseg" or config.get("backend_args"):
        return False
    from mmseg.datasets import BaseSegDataset

    return issubclass(target, BaseSegDataset) and _reads_as(target, BaseSegDataset)


@cache
def _by_our_rules(target: type[BaseDataset], masks: bool) -> type:
    """A CocoDataset whose category ids stand in the order of its classes, one for each, and whose masks, if they are
    used, have no lines; or a data set of mmseg that reads images of every kind, see
    `vssm.data.class_maps.pair_files`."""

    def numbered(self: object, cat_names: Sequence[str] = (), *args: object, **kwargs: object) -> list[int]:
        return list(ids_of_classes(self, cat_names).values())

    def indexed(self: object) -> None:
        if masks:
            leave_out_lines(self.dataset.get("annotations", ()))
        parent.createIndex(self)

    def listed(self: BaseDataset) -> list[dict]:
        maps = self.data_prefix.get("seg_map_path")
        pairs = _pairs_of(self)
        same = {"label_map": self.label_map, "reduce_zero_label": self.reduce_zero_label}
        return [
            {"img_path": image, **({"seg_map_path": of_image} if maps else {}), **same, "seg_fields": []}
            for image, of_image in pairs
        ]

    def reduced(self: BaseDataset) -> tuple:
        return _restored, (target, masks, vars(self))

    parent = getattr(target, "COCOAPI", None)
    annotations = parent and type("Annotations", (parent,), {"get_cat_ids": numbered, "createIndex": indexed})
    own = {"COCOAPI": annotations} if annotations else {"load_data_list": listed}
    return type(target.__name__, (target,), {**own, "__reduce__": reduced})


def _pairs_of(dataset: BaseDataset) -> list[tuple[str, str | None]]:
    """The images of a data set of mmseg with their class maps: those that its file lists, or all in its folder."""
    maps, file = dataset.data_prefix.get("seg_map_path"), _list_of(dataset)
    places = (
        Path(dataset.data_prefix["img_path"]),
        Path(maps) if maps else None,
        dataset.img_suffix,
        dataset.seg_map_suffix,
    )
    return pair_files(*places) if file is None else list_pairs(file, *places)


def _list_of(dataset: BaseDataset) -> Path | None:
    """The file that lists the images of a data set of mmseg; None where all in their folder are meant."""
    return Path(dataset.ann_file) if dataset.ann_file and not Path(dataset.ann_file).is_dir() else None


def _restored(target: type, masks: bool, state: dict) -> BaseDataset:
    """A pickled data set: workers that are not forked get it so, and find no class of its own in any module."""
    kind = _by_our_rules(target, masks=masks)
    dataset = kind.__new__(kind)
    vars(dataset).update(state)
    return dataset


def ids_of_classes(annotations: object, classes: Sequence[str]) -> dict[str, int]:
    """The category id of each class in an annotation file; a class without a category gets an id that nothing has.

    Args:
        annotations: pycocotools' COCO of the file.
        classes: names in the order of the labels.
    """
    counts = Counter({key: len(images) for key, images in annotations.catToImgs.items()})
    categories = annotations.dataset["categories"]
    ids = category_ids(categories, counts, classes, "the annotation file")
    free = max((category["id"] for category in categories if isinstance(category["id"], int)), default=0) + 1
    return {name: ids.get(name, free + place) for place, name in enumerate(classes)}


def _unread(target: type[BaseDataset], config: dict) -> BaseDataset:
    """The data set with its paths joined, before anything is read."""
    options = {key: value for key, value in config.items() if key not in ("type", "_scope_")}
    return target(**{**options, "pipeline": [], "lazy_init": True})


def _source(target: type) -> str:
    return f"{SOURCES[target.__name__]}, {ELSEWHERE}" if target.__name__ in SOURCES else f"put it there, {ELSEWHERE}"


def _check_detection(target: type[BaseDataset], config: dict, use: Use) -> None:
    from mmdet.datasets import CocoDataset

    if not issubclass(target, CocoDataset):
        return
    dataset = _unread(target, config)
    file, images = Path(dataset.ann_file), Path(dataset.data_prefix["img"])
    check_present([file, images], _source(target))
    if not _reads_as(target, CocoDataset):
        return
    asked = CocoUse(
        every_class=use.is_training,
        objects=use.is_training or use.scored,
        masks=_asks_masks(config, use),
        scored=use.scored and any(Path(other).resolve() == file.resolve() for other in use.score_files),
        empty_left_out=not dataset.test_mode and bool((dataset.filter_cfg or {}).get("filter_empty_gt", False)),
        min_side=0 if dataset.test_mode else (dataset.filter_cfg or {}).get("min_size", 0),
        upright=is_upright(config["pipeline"]),
    )
    check_coco(file, images, dataset.metainfo["classes"], asked)


def _check_segmentation(target: type[BaseDataset], config: dict, use: Use) -> None:
    from mmseg.datasets import BaseSegDataset

    if not issubclass(target, BaseSegDataset):
        return
    dataset = _unread(target, config)
    if use.reduced not in (None, dataset.reduce_zero_label):
        _logger.warning(
            f"{_named(target, config)}: reduce_zero_label is {dataset.reduce_zero_label}, and {use.reduced} in the "
            "training set: if the class maps of both have the same values, scores are of the wrong classes"
        )
    folders = [Path(folder) for folder in dataset.data_prefix.values() if folder]
    check_present([*folders, *([Path(dataset.ann_file)] if dataset.ann_file else [])], _source(target))
    maps = dataset.data_prefix.get("seg_map_path")
    if not maps or not _reads_as(target, BaseSegDataset):
        return
    if _list_of(dataset) is not None:
        pairs = _pairs_of(dataset)
        check_present([Path(path) for pair in pairs for path in pair], f"{dataset.ann_file} lists it")
        repeated = [image for image, count in Counter(image for image, _ in pairs).items() if count > 1]
        if repeated:
            _logger.warning(f"{dataset.ann_file} lists {some(repeated)} more than once: each line counts")
    else:
        images = Path(dataset.data_prefix["img_path"])
        pairs = check_class_maps(images, Path(maps), dataset.img_suffix, dataset.seg_map_suffix)
    check_maps(dataset, pairs, use, is_upright(config["pipeline"]))


def check_maps(dataset: BaseDataset, pairs: Sequence[tuple[str, str]], use: Use, upright: bool) -> None:
    """Look into the class maps of a data set of mmseg; see `vssm.data.class_maps.check_contents`."""
    if use.is_training or use.scored:
        meaning = meaning_of(dataset)
        check_contents(pairs, meaning, upright=upright, is_training=use.is_training, ignored_by=use.ignored_by)


def _loads(pipeline: object) -> Iterator[dict]:
    """The steps of a pipeline that load annotations, those inside other steps too."""
    if isinstance(pipeline, dict):
        if str(pipeline.get("type", "")).endswith("LoadAnnotations"):
            yield pipeline
        pipeline = list(pipeline.values())
    if isinstance(pipeline, list | tuple):
        for part in pipeline:
            yield from _loads(part)


def _reads_as(target: type[BaseDataset], parent: type[BaseDataset]) -> bool:
    """Whether a data set reads its files as its parent does: LVIS and panoptic COCO do not."""
    return all(
        getattr(target, name, None) is getattr(parent, name, None) for name in ("load_data_list", "parse_data_info")
    )
