"""Checks of an annotation file in the COCO format against its images and its use, before a training; each fault is one
sentence.

They read the annotation file, list folders, and open the heads of some images, so that the real COCO takes seconds.
"""

from __future__ import annotations

import codecs
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vssm.data.checks import check_readable, sampled, wrong_size
from vssm.data.classes import composed, some
from vssm.data.coco import is_mask, is_within_box, polygons_of
from vssm.data.decode import DataError, read_size
from vssm.files import FileError, check_regular

_logger = logging.getLogger(__name__)

_NEEDED = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area"),
}
# Boxes may reach so many pixels beyond the image: annotations are rounded.
_ROUNDING = 2.0
# Far beyond the area of any image; float32, in which boxes are learnt, has no larger numbers than 3e38.
_MOST = 1e12
# Objects whose polygons are compared with their boxes.
_COMPARED = 5000


@dataclass(frozen=True)
class CocoUse:
    """What a training or an evaluation asks of an annotation file.

    Args:
        every_class: each class needs a category, as in training; otherwise one at least.
        objects: annotations are needed; predictions alone do without.
        masks: objects need masks.
        scored: the file goes to pycocotools, which asks each annotation for `iscrowd`.
        empty_left_out: images without objects are left out; otherwise they serve as background.
        min_side: images with a shorter side, in pixels, are left out.
        upright: images are read as their EXIF orientation says.
    """

    every_class: bool = True
    objects: bool = True
    masks: bool = False
    scored: bool = False
    empty_left_out: bool = False
    min_side: int = 0
    upright: bool = True


def check_coco(file: Path, images: Path, classes: Sequence[str], use: CocoUse = CocoUse()) -> None:
    """Check an annotation file in the COCO format against the images, the classes and what it is used for.

    Boxes without area, images without objects and images that are not listed are legal (the real COCO has some): they
    are counted in the log.

    Args:
        file: the annotation file.
        images: the folder to which its file names are relative.
        classes: names of the classes to learn.
        use: what is asked of it.

    Raises:
        DataError: not the COCO format; a listed image that is missing, cannot be read or has another size; an
            annotation of an unlisted image or category, without a box, or without a mask where one is needed; a class
            that the file does not have; no objects at all.
    """
    content = _read(file, use)
    listed, shapes = {image["id"]: image for image in content["images"]}, content.get("annotations", [])
    _check_images(file, images, [image["file_name"] for image in listed.values()])
    _check_references(file, shapes, listed, {category["id"] for category in content["categories"]})
    ids = category_ids(content["categories"], Counter(shape["category_id"] for shape in shapes), classes, str(file))
    _check_classes(file, content["categories"], ids, classes, use.every_class)
    if shapes or use.objects:
        used = _check_boxes(file, shapes, listed, set(ids.values()))
        if use.masks:
            _check_masks(file, used, listed)
        _tell_what_is_left_out(file, used, listed, use)
    _check_sizes(file, images, list(listed.values()), use.upright)


def category_ids(
    categories: Sequence[Mapping], objects: Mapping[int, int], classes: Sequence[str], source: str
) -> dict[str, int]:
    """The id of the category of each class that has one, by name, in the order of the classes.

    Many exports have a root category with the name of a class and without objects: of several categories with one
    name, the one with objects counts.

    Args:
        categories: of an annotation file.
        objects: how many each category id has.
        classes: the names.
        source: the file, for the error.

    Raises:
        DataError: two categories of one name, both with objects.

    >>> category_ids([{"id": 0, "name": "cell"}, {"id": 1, "name": "cell"}], {1: 7}, ["cell"], "a.json")
    {'cell': 1}
    """
    named: dict[str, list[int]] = {}
    for category in categories:
        named.setdefault(composed(category["name"]), []).append(category["id"])
    chosen = {}
    for name in classes:
        ids = named.get(composed(name), [])
        filled = [key for key in ids if objects.get(key)]
        if len(filled) > 1:
            raise DataError(
                f"{source} has {len(filled)} categories named {name}, with the ids {some(filled)}, all of them with "
                "objects: rename or merge them"
            )
        if ids:
            chosen[name] = (filled or ids)[0]
    return chosen


def _read(file: Path, use: CocoUse) -> dict[str, list[dict[str, Any]]]:
    try:
        check_regular(file)
        text = file.read_bytes()
        if text.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError(f"{file} begins with a byte order mark; save it as UTF-8 without one")
        content = json.loads(text)
    except FileError as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON, or is cut short: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} is not in the COCO format: it holds a {type(content).__name__}; expected an object")
    for part, keys in _NEEDED.items():
        if part == "annotations":
            keys = (*keys, "iscrowd") if use.scored else keys
            if not use.objects and part not in content:
                continue
            if part not in content and "images" in content:
                raise DataError(
                    f"{file} has no list 'annotations', as files for predictions alone: training and scores need one; "
                    "to write predictions only, set format_only=True and outfile_prefix in the evaluator, or use "
                    "tools/predict.py"
                )
        _check_entries(file, part, content.get(part), keys)
        if use.scored and part != "annotations" and len({type(entry["id"]) is str for entry in content[part]}) > 1:
            raise DataError(
                f"{file}: some ids in {part!r} are numbers and others texts; expected one kind, to be sorted"
            )
    for image in content["images"]:
        sides = image["width"], image["height"]
        if not all(isinstance(side, int | float) and side > 0 for side in sides):
            raise DataError(f"{file}: the image {image['file_name']} has the size {sides[0]!r} x {sides[1]!r}")
    return content


def _check_entries(file: Path, part: str, entries: object, keys: Sequence[str]) -> None:
    if not isinstance(entries, list):
        raise DataError(f"{file} is not in the COCO format: it has no list {part!r}")
    needed = set(keys)
    for entry in entries:
        if not isinstance(entry, dict):
            raise DataError(f"{file}: an entry of {part!r} is no object: {str(entry)[:100]}")
        if not needed <= entry.keys():
            lacking = next(key for key in keys if key not in entry)
            raise DataError(f"{file}: an entry of {part!r} has no {lacking!r}: {str(entry)[:100]}")
        for key in ("id", "image_id", "category_id"):
            if key in needed and not isinstance(entry[key], int | str):
                raise DataError(
                    f"{file}: the {key!r} of an entry of {part!r} is no whole number or text: {str(entry)[:100]}"
                )
        for key in ("file_name", "name"):
            if key in needed and not isinstance(entry[key], str):
                raise DataError(f"{file}: the {key!r} of an entry of {part!r} is no text: {str(entry)[:100]}")
    ids = Counter(entry["id"] for entry in entries)
    if len(ids) < len(entries):
        raise DataError(f"{file}: the id {ids.most_common(1)[0][0]} comes more than once in {part!r}")


def _check_images(file: Path, folder: Path, names: Sequence[str]) -> None:
    there: set[str] = set()
    for part in {os.path.dirname(os.path.normpath(name)) for name in names}:
        if (folder / part).is_dir():
            there.update(os.path.join(part, entry.name) for entry in os.scandir(folder / part) if entry.is_file())
    listed = {os.path.normpath(name) for name in names}
    missing = [name for name in names if os.path.normpath(name) not in there]
    twice = [name for name, count in Counter(map(os.path.normpath, names)).items() if count > 1]
    if twice:
        _logger.warning(
            f"{file} lists {len(twice)} of {len(listed)} images more than once: {some(twice)}; the objects of "
            "one entry are background in the other"
        )
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} images that {file} lists are not in {folder}: {some(missing)}; complete "
            "the folder, or set data_prefix to the folder that the names are relative to"
        )
    others = sorted(there - listed)
    if others:
        _logger.info(f"{len(others)} files in {folder} are not listed in {file} and are left out: {some(others)}")


def _check_references(file: Path, shapes: list[dict], images: Mapping[int, dict], categories: set[int]) -> None:
    for shape in shapes:
        if shape["image_id"] not in images:
            raise DataError(f"{file}: annotation {shape['id']} is of image {shape['image_id']!r}, which is not listed")
        if shape["category_id"] not in categories:
            listed = some([repr(key) for key in sorted(categories, key=str)])
            raise DataError(
                f"{file}: annotation {shape['id']} of {images[shape['image_id']]['file_name']} has the unknown "
                f"category {shape['category_id']!r}; listed are {listed}"
            )


def _check_classes(
    file: Path, categories: list[dict], ids: Mapping[str, int], classes: Sequence[str], every: bool
) -> None:
    absent = [name for name in classes if name not in ids]
    if absent and (every or not ids):
        have = list(dict.fromkeys(category["name"] for category in categories))
        raise DataError(
            f"{file} has no category for {some(absent)}; it has {some(have)}: give the data set the classes of the "
            "file (metainfo=dict(classes=...)), and the heads their number"
        )
    if absent:
        _logger.warning(f"{file} has no category for {len(absent)} of the {len(classes)} classes: {some(absent)}")


def _check_boxes(file: Path, shapes: list[dict], images: Mapping[int, dict], wanted: set[int]) -> list[dict]:
    """The shapes of the wanted categories that mmdet uses; the condition is its own, and it leaves out silently."""
    for shape in shapes:
        box = shape["bbox"]
        numbers = [*box, shape["area"]] if isinstance(box, list) and len(box) == 4 else [None]
        if not all(isinstance(number, int | float) and abs(number) <= _MOST for number in numbers):
            raise DataError(
                f"{file}: annotation {shape['id']} of {images[shape['image_id']]['file_name']} has the box {box} and "
                f"the area {shape['area']!r}; expected [left, top, width, height] and an area in pixels: correct it, "
                "or remove the annotation"
            )
        for key in ("iscrowd", "ignore"):
            if shape.get(key) not in (None, 0, 1):
                raise DataError(f"{file}: annotation {shape['id']} has {key} {shape[key]!r}; expected 0 or 1")
    others = [shape for shape in shapes if shape["category_id"] not in wanted]
    if others:
        _logger.warning(
            f"{file}: {len(others)} of {len(shapes)} objects are of categories that are no classes, and are left out "
            f"(first: annotation {others[0]['id']}, category {others[0]['category_id']})"
        )
    shapes = [shape for shape in shapes if shape["category_id"] in wanted]
    if not shapes:
        return []
    left, top, width, height = np.array([shape["bbox"] for shape in shapes], dtype=float).T
    area = np.array([shape["area"] for shape in shapes], dtype=float)
    size = [(images[shape["image_id"]]["width"], images[shape["image_id"]]["height"]) for shape in shapes]
    right, bottom = np.array(size, dtype=float).T
    within = (np.minimum(left + width, right) > np.maximum(left, 0)) & (
        np.minimum(top + height, bottom) > np.maximum(top, 0)
    )
    marked = np.array([bool(shape.get("ignore")) for shape in shapes])
    flat = ~marked & (~within | (area <= 0) | (width < 1) | (height < 1))
    beyond = (
        ~marked
        & ~flat
        & (
            (np.minimum(left, top) < -_ROUNDING)
            | (left + width > right + _ROUNDING)
            | (top + height > bottom + _ROUNDING)
        )
    )
    kinds = {"are marked 'ignore': training leaves them out, and scores count them": marked}
    kinds |= {"have no area in the image and are left out": flat, "reach beyond the image": beyond}
    for what, wrong in kinds.items():
        if wrong.any():
            first = shapes[int(np.flatnonzero(wrong)[0])]
            told = (
                f"{file}: {int(wrong.sum())} of {len(shapes)} boxes {what} (first: annotation {first['id']} of "
                f"{images[first['image_id']]['file_name']}, {first['bbox']})"
            )
            if wrong is beyond and 2 * wrong.sum() > len(shapes):
                raise DataError(
                    f"{told}; expected [left, top, width, height] in pixels: are these [left, top, right, bottom]?"
                )
            _logger.warning(told)
    used = [shape for shape, left_out in zip(shapes, marked | flat, strict=True) if not left_out]
    _check_crowds(file, used)
    return used


def _check_crowds(file: Path, shapes: list[dict]) -> None:
    """Refuse objects that are all crowds, as some exports mark masks of run lengths: they count nowhere."""
    crowds = [shape["id"] for shape in shapes if shape.get("iscrowd")]
    if crowds:
        told = f"{file}: {len(crowds)} of {len(shapes)} objects are crowds (iscrowd 1), in neither loss nor score"
        if len(crowds) == len(shapes):
            raise DataError(f"{told}; set iscrowd to 0 for single objects, whatever the kind of their masks")
        _logger.warning(f"{told} (first: annotation {crowds[0]})")


def _check_masks(file: Path, shapes: list[dict], images: Mapping[int, dict]) -> None:
    lacking, wrong, degenerate = [], [], []
    for shape in shapes:
        mask = shape.get("segmentation")
        if not mask:
            lacking.append(shape)
        elif not is_mask(mask, images[shape["image_id"]]):
            wrong.append(shape)
        elif isinstance(mask, list) and not polygons_of(mask):
            degenerate.append(shape)

    def told(found: list[dict], what: str) -> str:
        first = found[0]
        name, shown = images[first["image_id"]]["file_name"], str(first.get("segmentation"))[:80]
        count = f"{len(found)} of {len(shapes)} objects"
        return f"{file}: {count} have {what} (first: annotation {first['id']} of {name}, {shown})"

    if lacking:
        raise DataError(
            f"{told(lacking, 'no mask (segmentation)')}, and the config asks for masks: use a detector of boxes "
            "(RetinaNet), with_mask=False in LoadAnnotations and metric='bbox' in the evaluator, or add the masks"
        )
    if wrong or (degenerate and len(degenerate) == len(shapes)):
        raise DataError(
            f"{told(wrong or degenerate, 'a mask that cannot be used')}; expected polygons [x, y, x, y, x, y, ...] in "
            "pixels, or run lengths of all pixels of the image, with its size [height, width]"
        )
    polygons = [shape for shape in shapes if isinstance(shape["segmentation"], list)]
    looked_at = sampled([shape for shape in polygons if polygons_of(shape["segmentation"])], _COMPARED)
    apart = [shape for shape in looked_at if not is_within_box(shape["segmentation"], shape["bbox"])]
    if 2 * len(apart) > len(looked_at):
        raise DataError(
            f"{told(apart, 'a mask elsewhere than their box')}, which is {apart[0]['bbox']}; expected both in pixels "
            "of the image: are the polygons parts of its size, or those of an image that was resized?"
        )
    if degenerate:
        _logger.warning(f"{told(degenerate, 'a mask of fewer than three points, and are left out')}")


def _tell_what_is_left_out(file: Path, shapes: list[dict], images: Mapping[int, dict], use: CocoUse) -> None:
    filled = {shape["image_id"] for shape in shapes}
    empty = [image["file_name"] for key, image in images.items() if key not in filled]
    small = [image["file_name"] for image in images.values() if min(image["width"], image["height"]) < use.min_side]
    if len(empty) == len(images) or len({*small, *(empty if use.empty_left_out else ())}) == len(images):
        size = f" and a side of {use.min_side} pixels (filter_cfg.min_size)" if small else ""
        raise DataError(f"{file}: none of its {len(images)} images has an object of the classes{size}")
    for names, what in (
        (empty, f"no objects and {'are left out' if use.empty_left_out else 'serve as background'}"),
        (small, f"a side below {use.min_side} pixels (filter_cfg.min_size) and are left out"),
    ):
        if names:
            _logger.warning(f"{file}: {len(names)} of {len(images)} images have {what} (first: {names[0]})")


def _check_sizes(file: Path, folder: Path, images: list[dict], upright: bool) -> None:
    """Compare the size of some images, as they will be read, with the size that the annotations are for."""
    looked_at = sampled(images)
    untold = []
    for image in looked_at:
        path = os.path.join(folder, image["file_name"])
        stored, turn = read_size(path)
        turned = stored[::-1] if turn > 4 else stored
        listed = image["width"], image["height"]
        if listed != (turned if upright else stored):
            raise DataError(wrong_size(path, listed, stored, turn, upright, f"{file} lists"))
        if turn > 1 and upright and turned == stored:
            untold.append(image["file_name"])
    if untold:
        _logger.warning(
            f"{len(untold)} of {len(looked_at)} images in {folder} that were looked at are turned by their EXIF "
            f"orientation and are read upright; that the annotations of {file} are upright too, their size does not "
            f"tell (first: {untold[0]})"
        )
    check_readable([os.path.join(folder, image["file_name"]) for image in looked_at])
