"""Runs the checks of `vssm.data.checks` for the data sets of mmdet's and mmseg's configs."""

import inspect
from collections.abc import Iterator
from pathlib import Path

from mmengine.dataset import BaseDataset
from mmengine.dist import is_main_process
from mmengine.registry import DATASETS, DefaultScope
from torch.utils.data import Dataset

from vssm.data.checks import check_class_maps, check_classes_of_map, check_coco, check_present

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


def check_dataset(config: dict) -> None:
    """Check the files of a data set before it is built. Data sets of other packages than mmdet and mmseg pass.

    Args:
        config: the data set's part of a configuration, wrappers of data sets included.

    Raises:
        DataError: names what is missing or wrong, and what to do.
    """
    scope = DefaultScope.get_current_instance()
    check = {"mmdet": _check_detection, "mmseg": _check_segmentation}.get(scope.scope_name if scope else "")
    if check is None or not is_main_process():
        return
    for part in _leaves(config):
        with DATASETS.switch_scope_and_registry(None) as registry:
            target = registry.get(part["type"]) if isinstance(part["type"], str) else part["type"]
        if inspect.isclass(target) and issubclass(target, BaseDataset) and not part.get("backend_args"):
            check(target, part)


def _leaves(config: dict) -> Iterator[dict]:
    """The data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    inner = config.get("datasets") or ([config["dataset"]] if "dataset" in config else [])
    for part in inner:
        yield from _leaves(part)
    if not inner:
        yield config


def _unread(target: type[BaseDataset], config: dict) -> BaseDataset:
    """The data set with its paths joined, before anything is read."""
    options = {key: value for key, value in config.items() if key not in ("type", "_scope_")}
    return target(**{**options, "pipeline": [], "lazy_init": True})


def _source(target: type) -> str:
    return f"{SOURCES[target.__name__]}, {ELSEWHERE}" if target.__name__ in SOURCES else f"put it there, {ELSEWHERE}"


def _check_detection(target: type[BaseDataset], config: dict) -> None:
    from mmdet.datasets import CocoDataset

    if not issubclass(target, CocoDataset):
        return
    dataset = _unread(target, config)
    file, images = Path(dataset.ann_file), Path(dataset.data_prefix["img"])
    check_present([file, images], _source(target))
    if _reads_as(target, CocoDataset):
        empty_left_out = not dataset.test_mode and (dataset.filter_cfg or {}).get("filter_empty_gt", False)
        check_coco(file, images, dataset.metainfo["classes"], empty_left_out)


def _check_segmentation(target: type[BaseDataset], config: dict) -> None:
    from mmseg.datasets import BaseSegDataset

    if not issubclass(target, BaseSegDataset):
        return
    dataset = _unread(target, config)
    folders = [Path(folder) for folder in dataset.data_prefix.values() if folder]
    check_present([*folders, *([Path(dataset.ann_file)] if dataset.ann_file else [])], _source(target))
    maps = dataset.data_prefix.get("seg_map_path")
    if maps and not dataset.ann_file and _reads_as(target, BaseSegDataset):
        check_class_maps(Path(dataset.data_prefix["img_path"]), Path(maps), dataset.img_suffix, dataset.seg_map_suffix)


def _reads_as(target: type[BaseDataset], parent: type[BaseDataset]) -> bool:
    """Whether a data set reads its files as its parent does: LVIS and panoptic COCO do not."""
    return all(
        getattr(target, name, None) is getattr(parent, name, None) for name in ("load_data_list", "parse_data_info")
    )


def check_maps_when_read(dataset: Dataset) -> None:
    """Add a check to a data set of mmseg that refuses class maps with unknown values as they are read."""
    for part in [dataset, *getattr(dataset, "datasets", [])]:
        inner = getattr(part, "dataset", part)
        transforms = getattr(getattr(inner, "pipeline", None), "transforms", [])
        if hasattr(inner, "reduce_zero_label"):
            places = [i for i, transform in enumerate(transforms) if type(transform).__name__ == "LoadAnnotations"]
            for place in reversed(places):
                transforms.insert(place + 1, _MapCheck(len(inner.metainfo["classes"]), inner.ignore_index))


class _MapCheck:
    """A transform of mmseg that checks the class map and changes nothing."""

    def __init__(self, number: int, ignored: int) -> None:
        self.number, self.ignored = number, ignored

    def __call__(self, results: dict) -> dict:
        path, first = results["seg_map_path"], int(results["reduce_zero_label"])
        check_classes_of_map(results["gt_seg_map"], self.number, self.ignored, path, first)
        return results
