"""mmdet's and mmseg's data sets read images and class maps by the rules of vssm.data, which prediction follows too."""

from __future__ import annotations

import io
from typing import IO

import numpy as np
from mmengine import fileio
from mmengine.dataset import Compose
from PIL import Image
from torch.utils.data import Dataset

from vssm.data import DataError, read_rgb
from vssm.data.checks import wrong_size
from vssm.data.class_maps import Meaning, check_map_size, read_class_map, to_labels
from vssm.data.decode import read_size
from vssm.mm.runtime.seeding import with_inner

# The steps that are replaced, themselves and no subclasses of them. Nothing here needs mmcv before it is used.
IMAGE_LOADER = "mmcv.transforms.loading.LoadImageFromFile"
MAP_LOADER = "mmseg.datasets.transforms.loading.LoadAnnotations"


def is_upright(pipeline: object) -> bool:
    """Whether a pipeline, built or of a config, reads images as their EXIF orientation says."""
    steps = getattr(pipeline, "transforms", pipeline)
    kinds = [
        step.get("color_type", "") if isinstance(step, dict) else getattr(step, "color_type", "") for step in steps
    ]
    return not any(str(kind).endswith("ignore_orientation") for kind in kinds)


def read_by_our_rules(dataset: Dataset) -> None:
    """Replace the steps that load images and class maps in the pipelines of a data set, and of data sets inside it.

    Steps with other options, such as another decoder or reading all channels, stay as they are.
    """
    for part in with_inner(dataset):
        pipeline = getattr(part, "pipeline", None)
        if pipeline is not None:
            meaning = meaning_of(part) if hasattr(part, "reduce_zero_label") else None
            _replace(pipeline, meaning, is_upright(pipeline))


def meaning_of(dataset: Dataset) -> Meaning:
    """What the values in the class maps of a data set of mmseg stand for."""
    meta = dataset.metainfo
    # The classes of the files: those that were given beside the training's, or those of the class of the data set.
    own = meta.get("file_classes") or (type(dataset).METAINFO.get("classes") if dataset.label_map else None)
    return Meaning(meta["classes"], dataset.ignore_index, dataset.reduce_zero_label, own, meta.get("pixel_values"))


def _replace(node: object, meaning: Meaning | None, upright: bool) -> None:
    """Go through pipelines inside transforms (Compose, lists, TestTimeAug, RandomApply and the like)."""
    steps = node.transforms if isinstance(node, Compose) else node
    if isinstance(steps, list):
        for place, step in enumerate(steps):
            steps[place] = _ours(step, meaning, upright)
            _replace(steps[place], meaning, upright)
    elif hasattr(steps, "__dict__") and not isinstance(steps, RgbLoader | ClassMapLoader):
        for value in vars(steps).values():
            if isinstance(value, Compose | list):
                _replace(value, meaning, upright)


def _ours(step: object, meaning: Meaning | None, upright: bool) -> object:
    kind = f"{type(step).__module__}.{type(step).__name__}"
    if kind == IMAGE_LOADER:
        if step.imdecode_backend == "cv2" and step.color_type in ("color", "color_ignore_orientation"):
            return RgbLoader(step)
    elif (
        meaning is not None and type(step).__name__ == "LoadAnnotations" and type(step).__module__.startswith("mmseg.")
    ):
        return ClassMapLoader(step, meaning, upright)
    return step


class RgbLoader:
    """Loads an image as mmcv's LoadImageFromFile does, by our rules: BGR, (height, width, 3).

    Args:
        original: the step in whose place it stands.
    """

    def __init__(self, original: object) -> None:
        self.original = original
        self.color_type = original.color_type

    def __call__(self, results: dict) -> dict | None:
        """Add ``img``, ``img_shape`` and ``ori_shape``.

        Raises:
            BadImageError: names the file that cannot be read.
            DataError: names a file whose annotations are for another size.
        """
        path, upright = results["img_path"], self.color_type == "color"
        try:
            image = read_rgb(_source(path, self.original.backend_args), path, upright=upright)
        except DataError:
            if self.original.ignore_empty:
                return None
            raise
        listed = results.get("width"), results.get("height")
        if None not in listed and listed != image.size:
            stored, turn = read_size(path) if "://" not in path else (image.size, 1)
            raise DataError(wrong_size(path, listed, stored, turn, upright, "its annotations are for"))
        pixels = to_bgr(image)
        results["img"] = pixels.astype(np.float32) if self.original.to_float32 else pixels
        results["img_shape"] = results["ori_shape"] = pixels.shape[:2]
        return results

    def __repr__(self) -> str:
        return f"RgbLoader(color_type={self.color_type!r})"


class ClassMapLoader:
    """Loads a class map as mmseg's LoadAnnotations does, and checks it: channels, values, size.

    Args:
        original: the step in whose place it stands.
        meaning: of the values in the files.
        upright: whether the image is read as its EXIF orientation says.

    Raises:
        DataError: the step and its data set differ in what the value 0 is.
    """

    def __init__(self, original: object, meaning: Meaning, upright: bool) -> None:
        if original.reduce_zero_label not in (None, meaning.zero_is_ignored):
            raise DataError(
                f"reduce_zero_label is {original.reduce_zero_label} in LoadAnnotations and {meaning.zero_is_ignored} "
                "in the data set, which counts: set it there, and leave it out of LoadAnnotations"
            )
        self.original, self.meaning, self.upright = original, meaning, upright
        self.table = meaning.table()

    def __call__(self, results: dict) -> dict:
        """Add ``gt_seg_map``, (height, width) uint8.

        Raises:
            DataError: names the file, and what is wrong with it.
        """
        path = results["seg_map_path"]
        values = read_class_map(_source(path, self.original.backend_args), path)
        if values.shape != tuple(results.get("ori_shape", values.shape)):
            check_map_size(values, results["img_path"], path, self.upright)
        results["gt_seg_map"] = to_labels(values, self.table, self.meaning, path)
        results["seg_fields"].append("gt_seg_map")
        return results

    def __repr__(self) -> str:
        return f"ClassMapLoader({self.meaning})"


def to_bgr(image: Image.Image) -> np.ndarray:
    """The pixels of an RGB image as mmcv has them, (height, width, 3).

    >>> to_bgr(Image.new("RGB", (2, 1), (1, 2, 3))).tolist()
    [[[3, 2, 1], [3, 2, 1]]]
    """
    import mmcv  # 50 times as fast as numpy here

    return mmcv.rgb2bgr(np.asarray(image))


def _source(path: str, backend_args: dict | None) -> str | IO[bytes]:
    if backend_args is None and "://" not in path:
        return path
    return io.BytesIO(fileio.get(path, backend_args=backend_args))
