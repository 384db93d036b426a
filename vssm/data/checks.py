"""Checks of detection and segmentation data before training; each fault is one sentence.

They read annotation files and list folders but open no image, so that the real COCO takes seconds.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vssm.data.decode import DataError
from vssm.files import FileError, check_regular

_logger = logging.getLogger(__name__)

_NEEDED = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area"),
    "categories": ("id", "name"),
}


def check_present(paths: Iterable[Path], source: str) -> None:
    """Refuse data with a missing file or folder.

    Args:
        paths: files and folders that the data consist of.
        source: end of the sentence: where to get the data and where to put them.

    Raises:
        DataError: names all that is missing.

    >>> check_present([Path("/nowhere/train2017")], "put COCO there")
    Traceback (most recent call last):
    vssm.data.decode.DataError: /nowhere/train2017 is missing: put COCO there
    """
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise DataError(f"{' and '.join(missing)} {verb} missing: {source}")


def check_coco(file: Path, images: Path, classes: Sequence[str], empty_left_out: bool = False) -> None:
    """Check an annotation file in the COCO format against the images and the classes it is used with.

    Boxes without area and images without objects are legal (the real COCO has some): they are counted in the log.

    Args:
        file: the annotation file.
        images: the folder to which its file names are relative.
        classes: names of the classes to learn.
        empty_left_out: whether images without objects are left out, or serve as background.

    Raises:
        DataError: not the COCO format; a listed image that is missing; an annotation of an unlisted image or category;
            a class that the file does not have; no objects at all.
    """
    content = _read(file)
    listed, shapes, categories = content["images"], content["annotations"], content["categories"]
    names = {image["id"]: image["file_name"] for image in listed}
    _check_images(file, images, list(names.values()))
    _check_references(file, shapes, names, {category["id"] for category in categories})
    absent = [name for name in classes if name not in {category["name"] for category in categories}]
    if absent:
        have = [category["name"] for category in categories]
        raise DataError(
            f"{file} has no category for {_some(absent)}; it has {_some(have)}: give the data set the classes of the "
            "file (metainfo=dict(classes=...)), and the heads their number"
        )
    _tell_what_is_empty(file, shapes, names, empty_left_out)


def _read(file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        check_regular(file)
        content = json.loads(file.read_bytes())
    except FileError as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    except ValueError as error:
        raise DataError(f"{file} is not JSON, or is cut short: {error}") from error
    for part, keys in _NEEDED.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{file} is not in the COCO format: it has no list {part!r}")
        for entry in entries:
            lacking = [key for key in keys if key not in entry]
            if lacking:
                raise DataError(f"{file}: an entry of {part!r} has no {lacking[0]!r}: {str(entry)[:100]}")
        ids = Counter(entry["id"] for entry in entries)
        if len(ids) < len(entries):
            raise DataError(f"{file}: the id {ids.most_common(1)[0][0]} comes more than once in {part!r}")
    return content


def _check_images(file: Path, folder: Path, names: Sequence[str]) -> None:
    there: set[str] = set()
    for part in {os.path.dirname(name) for name in names}:
        if (folder / part).is_dir():
            there.update(os.path.join(part, entry.name) for entry in os.scandir(folder / part) if entry.is_file())
    missing = [name for name in names if name not in there]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} images that {file} lists are not in {folder}: {_some(missing)}; complete "
            "the folder, or set data_prefix to the folder that the names are relative to"
        )


def _check_references(file: Path, shapes: list[dict], images: dict[int, str], categories: set[int]) -> None:
    for shape in shapes:
        if shape["image_id"] not in images:
            raise DataError(f"{file}: annotation {shape['id']} is of image {shape['image_id']}, which is not listed")
        if shape["category_id"] not in categories:
            raise DataError(
                f"{file}: annotation {shape['id']} of {images[shape['image_id']]} has the unknown category "
                f"{shape['category_id']}; listed are {_some(sorted(categories))}"
            )


def _tell_what_is_empty(file: Path, shapes: list[dict], images: dict[int, str], empty_left_out: bool) -> None:
    # The condition under which mmdet leaves boxes out silently.
    flat = [shape for shape in shapes if min(*shape["bbox"][2:], shape["area"]) <= 0 or min(shape["bbox"][2:]) < 1]
    if flat:
        first = flat[0]
        _logger.warning(
            f"{file}: {len(flat)} of {len(shapes)} boxes have no area and are left out (first: annotation "
            f"{first['id']} of {images[first['image_id']]}, {first['bbox']})"
        )
    flat_ids = {shape["id"] for shape in flat}
    filled = {shape["image_id"] for shape in shapes if shape["id"] not in flat_ids}
    empty = [name for key, name in images.items() if key not in filled]
    if len(empty) == len(images):
        raise DataError(f"{file}: none of its {len(images)} images has an object")
    if empty:
        use = "are left out" if empty_left_out else "serve as background"
        _logger.warning(f"{file}: {len(empty)} of {len(images)} images have no objects and {use} (first: {empty[0]})")


def check_class_maps(images: Path, maps: Path, image_suffix: str, map_suffix: str) -> None:
    """Check that there are images, each with a class map.

    Raises:
        DataError: names the images that have none.
    """
    found = _files(images, image_suffix)
    if not found:
        raise DataError(f"there are no images *{image_suffix} in {images}: set img_suffix to how their names end")
    there = _files(maps, map_suffix)
    missing = sorted(name for name in found if name.removesuffix(image_suffix) + map_suffix not in there)
    if missing:
        raise DataError(
            f"{len(missing)} of {len(found)} images in {images} have no class map *{map_suffix} in {maps}: "
            f"{_some(missing)}"
        )


def _files(folder: Path, suffix: str) -> set[str]:
    """The regular files of a folder and its folders whose names end so, relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob(f"*{suffix}") if path.is_file()}


def check_classes_of_map(classes: NDArray[np.uint8], number: int, ignored: int, path: str, first: int = 0) -> None:
    """Refuse a class map with values that stand for no class.

    Args:
        classes: (height, width).
        number: of classes.
        ignored: the value of pixels that are not counted.
        path: of the file, for the message.
        first: the value in the file that stands for class 0.

    Raises:
        DataError: names the values as they are in the file.

    >>> check_classes_of_map(np.array([[0, 1, 255]], np.uint8), 2, 255, "map.png")
    """
    unknown = classes[(classes >= number) & (classes != ignored)]
    if unknown.size:
        values = [int(value) + first for value in np.unique(unknown)]
        raise DataError(
            f"{path} has {unknown.size} pixels of the unknown class {_some(values)}: the {number} classes are "
            f"{first} to {number - 1 + first}, and {'0 and ' if first else ''}{ignored} are not counted"
        )


def _some(items: Sequence[Any]) -> str:
    first = ", ".join(str(item) for item in items[:5])
    return first if len(items) <= 5 else f"{first} and {len(items) - 5} more"
