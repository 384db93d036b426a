"""The files of an embedded set: a folder per class, or the layouts of COCO and ADE20K.

To add a layout, write its three functions and a Layout of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vssm.data.coco import CocoWriter, annotations_of
from vssm.data.scene import Scene
from vssm.data.silhouettes import KINDS

_PNG_SHARE = 0.3
_JPEG_QUALITY = (80, 95)


@dataclass(frozen=True)
class Layout:
    """The files of an embedded set.

    Args:
        name: starts the name of the set's folder.
        folders: the folders of a split ("train" or "val"), relative to the set's.
        write: writes one scene. Called with the set's folder, the split, the scene's index, the scene, and the random
            generator; returns what `finish` needs.
        finish: called with the set's folder, the split, and what `write` returned, in the order of the scenes.
    """

    name: str
    folders: Callable[[str], Sequence[str]]
    write: Callable[[Path, str, int, Scene, np.random.Generator], Any]
    finish: Callable[[Path, str, Sequence[Any]], None]


def write_image(random: np.random.Generator, scene: Scene, stem: Path, png_share: float = _PNG_SHARE) -> Path:
    """Write a scene's image as PNG or JPEG, chosen at random; returns the file."""
    image = Image.fromarray(scene.image)
    if random.random() < png_share:
        file = stem.with_suffix(".png")
        image.save(file)
    else:
        file = stem.with_suffix(".jpg")
        image.save(file, quality=int(random.integers(*_JPEG_QUALITY, endpoint=True)))
    return file


def _kind_folders(split: str) -> list[str]:
    return [f"{split}/{kind}" for kind in KINDS]


def _write_into_kind(folder: Path, split: str, index: int, scene: Scene, random: np.random.Generator) -> None:
    write_image(random, scene, folder / split / KINDS[scene.instances[0].kind] / f"{index:06d}")


def _nothing(folder: Path, split: str, records: Sequence[None]) -> None:
    """Nothing: the folder of an image says its class."""


def _coco_folders(split: str) -> list[str]:
    return [split, "annotations"]


def _write_coco(folder: Path, split: str, index: int, scene: Scene, random: np.random.Generator) -> tuple:
    file = write_image(random, scene, folder / split / f"{index:06d}")
    return file.name, scene.image.shape[0], annotations_of(scene)


def _finish_coco(folder: Path, split: str, records: Sequence[tuple]) -> None:
    coco = CocoWriter(KINDS)
    for record in records:
        coco.add(*record)
    coco.write(folder / "annotations" / f"instances_{split}.json")


_ADE20K_SPLITS = {"train": "training", "val": "validation"}


def _ade20k_folders(split: str) -> list[str]:
    return [f"images/{_ADE20K_SPLITS[split]}", f"annotations/{_ADE20K_SPLITS[split]}"]


def _write_ade20k(folder: Path, split: str, index: int, scene: Scene, random: np.random.Generator) -> None:
    images, annotations = (folder / name for name in _ade20k_folders(split))
    # All JPEG, as in ADE20K: mmseg looks for one suffix.
    write_image(random, scene, images / f"{index:06d}", png_share=0.0)
    Image.fromarray(scene.class_map()).save(annotations / f"{index:06d}.png")


# SET/{train,val}/<kind>/<id>.jpg or .png: the label is the kind of the large shape in front.
IMAGE_FOLDER = Layout("shapes", _kind_folders, _write_into_kind, _nothing)
# SET/{train,val}/<id>.jpg or .png, and SET/annotations/instances_{train,val}.json with the box and the visible mask
# (run lengths) of every shape.
COCO = Layout("shapes_coco", _coco_folders, _write_coco, _finish_coco)
# SET/images/{training,validation}/<id>.jpg and SET/annotations/{training,validation}/<id>.png, whose pixels are
# 0 on the background and 1 + kind on a shape.
ADE20K = Layout("shapes_ade", _ade20k_folders, _write_ade20k, _nothing)
