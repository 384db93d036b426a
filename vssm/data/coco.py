"""Shapes as annotations in the COCO format, for detection and instance segmentation (pycocotools is not needed)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vssm.data.scene import Mask, Scene

Annotation = dict[str, Any]


def run_lengths(mask: Mask) -> list[int]:
    """COCO's uncompressed run lengths of a (height, width) mask: columns first, zeros first.

    Source: the COCO API's mask format.

    >>> run_lengths(np.array([[False, True], [False, True]]))
    [2, 2]
    >>> run_lengths(np.array([[True, True]]))
    [0, 2]
    """
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()


def lengths_of(counts: object) -> list[int] | None:
    """The run lengths in an annotation, written as numbers or, compressed, as text; None where they are none.

    >>> lengths_of([100, 24, 900]), lengths_of("T3h0Tl0"), lengths_of([1.5])
    ([100, 24, 900], [100, 24, 900], None)
    """
    lengths = _decompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(isinstance(n, int | float) and n >= 0 and n % 1 == 0 for n in lengths):
        return None
    return lengths


def _decompressed(text: str) -> list[int]:
    """Five bits a letter, the lowest first, with a sixth where more follow; from the fourth on relative to the last
    but one."""
    lengths, value, shift = [], 0, 0
    for letter in text:
        bits = ord(letter) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        value -= (bits & 16) << (shift - 4)
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value, shift = 0, 0
    return lengths


def is_mask(mask: object, image: Mapping[str, Any]) -> bool:
    """Whether a mask is run lengths of all pixels of the image, or lists of finite numbers.

    pycocotools reads beyond run lengths that end early, and may never return.

    Args:
        mask: the segmentation of an annotation.
        image: its entry, with height and width.
    """
    if isinstance(mask, dict):
        size, lengths = [image["height"], image["width"]], lengths_of(mask.get("counts"))
        return mask.get("size") == size and lengths is not None and sum(lengths) == math.prod(size)
    try:
        return isinstance(mask, list) and all(math.isfinite(sum(polygon)) for polygon in mask)
    except TypeError:
        return False


def polygons_of(mask: list[list[float]]) -> list[list[float]]:
    """The polygons of a mask that have at least three points.

    >>> polygons_of([[1, 2, 3, 4], [0, 0, 4, 0, 4, 4]])
    [[0, 0, 4, 0, 4, 4]]
    """
    return [polygon for polygon in mask if len(polygon) % 2 == 0 and len(polygon) >= 6]


def is_within_box(mask: list[list[float]], box: list[float]) -> bool:
    """Whether the polygons of a mask and the object's box have at least a tenth of what is around both in common.

    >>> is_within_box([[0, 0, 4, 0, 4, 4]], [0, 0, 4, 4]), is_within_box([[0, 0, 0.4, 0, 0.4, 0.4]], [9, 9, 4, 4])
    (True, False)
    """
    polygons = polygons_of(mask)
    rows, columns = ([value for each in polygons for value in each[start::2]] for start in (1, 0))
    left, top, width, height = box

    def extent(values: list[float], start: float, size: float) -> tuple[float, float]:
        """How long a side is of what both have, and of what is around both; points may be pixels or edges."""
        low, high = min(values), max(values) + 1
        return max(0, min(high, start + size) - max(low, start)), max(high, start + size) - min(low, start)

    (across, most_across), (down, most_down) = extent(columns, left, width), extent(rows, top, height)
    return 10 * across * down >= most_across * most_down


def leave_out_lines(annotations: Iterable[dict[str, Any]]) -> None:
    """Leave polygons of fewer than three points out of masks, as mmdet's training does; pycocotools fails with them.

    An object with no other polygon becomes a crowd in the place of its box, which counts in neither loss nor score.

    Args:
        annotations: changed in place.
    """
    for each in annotations:
        mask = each.get("segmentation")
        if not isinstance(mask, list) or not mask:
            continue
        each["segmentation"] = polygons_of(mask)
        if not each["segmentation"]:
            left, top, width, height = each["bbox"]
            right, bottom = left + width, top + height
            each["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
            each["iscrowd"] = 1


def box(mask: Mask) -> list[int]:
    """(left, top, width, height) in pixels, of a mask that is not empty.

    >>> box(np.array([[False, False, False], [False, True, True]]))
    [1, 1, 2, 1]
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def annotations_of(scene: Scene) -> list[Annotation]:
    """The shapes of a scene, from front to back, as COCO annotations without ids."""
    return [
        {
            "category_id": instance.kind + 1,
            "bbox": box(instance.visible),
            "area": int(instance.visible.sum()),
            "segmentation": {"size": list(instance.visible.shape), "counts": run_lengths(instance.visible)},
            "iscrowd": 0,
        }
        for instance in scene.instances
    ]


class CocoWriter:
    """Collects annotations and writes them to one file.

    Args:
        names: names of the classes; class i has the category id i + 1.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.categories = [{"id": index + 1, "name": name} for index, name in enumerate(names)]
        self.images: list[dict[str, Any]] = []
        self.annotations: list[Annotation] = []

    def add(self, file_name: str, size: int, annotations: Sequence[Annotation]) -> None:
        """Add a square image with `size` pixels a side; its file name is relative to the folder of its split."""
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, "file_name": file_name, "height": size, "width": size})
        for annotation in annotations:
            self.annotations.append({"id": len(self.annotations) + 1, "image_id": image_id, **annotation})

    def write(self, file: Path) -> None:
        """Write the annotation file, making its folder."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            json.dumps({"images": self.images, "annotations": self.annotations, "categories": self.categories})
        )
