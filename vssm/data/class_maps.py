"""Class maps of segmentation: images of one channel whose pixels are numbers of classes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vssm.data.checks import check_readable, sampled
from vssm.data.classes import lines_in, some
from vssm.data.decode import _DECODING_ERRORS, IMAGE_SUFFIXES, BadImageError, DataError, is_image_name, read_size
from vssm.data.folders import walk_files
from vssm.files import check_regular

_logger = logging.getLogger(__name__)

# Maps whose pixels are counted before a training: 2 to 5 ms each.
COUNTED = 1000
_VALUES = 256


@dataclass(frozen=True)
class Meaning:
    """What the values in the files of class maps stand for.

    Args:
        classes: names, in the order of the labels.
        ignored: the label of pixels that count neither in the loss nor in the score.
        zero_is_ignored: 0 in a file is ignored and 1 is the first class, as in ADE20K (`reduce_zero_label`).
        file_classes: the names in the order of the files' numbers; None for `classes`.
        pixel_values: the value in the files of each of `file_classes`; None for 0, 1, 2, ...
    """

    classes: Sequence[str]
    ignored: int = 255
    zero_is_ignored: bool = False
    file_classes: Sequence[str] | None = None
    pixel_values: Sequence[int] | None = None

    def __post_init__(self) -> None:
        names = self.file_classes or self.classes
        if self.pixel_values is not None and len(self.pixel_values) != len(names):
            raise DataError(
                f"metainfo has {len(self.pixel_values)} pixel_values and {len(names)} classes ({some(names)}); "
                "expected one value for each class"
            )
        values = self.pixel_values or ()
        if not all(isinstance(value, int) and 0 <= value < _VALUES for value in values) or len({*values}) < len(values):
            raise DataError(
                f"metainfo has the pixel_values {some(values)}; expected whole numbers from 0 to {_VALUES - 1}, "
                "another one for each class"
            )

    def table(self) -> NDArray[np.int16]:
        """(256,): the label of each value in a file; -1 where it stands for nothing.

        >>> Meaning(["road", "tree"], pixel_values=[0, 255]).table()[[0, 1, 255]].tolist()
        [0, -1, 1]
        >>> Meaning(["road", "tree"], zero_is_ignored=True).table()[[0, 1, 2, 3, 255]].tolist()
        [255, 0, 1, -1, 255]
        """
        table = np.full(_VALUES, -1, np.int16)
        table[self.ignored] = self.ignored
        if self.zero_is_ignored:
            table[[0, _VALUES - 1]] = self.ignored
        names = self.file_classes or self.classes
        first = int(self.zero_is_ignored)
        values = self.pixel_values or range(first, first + len(names))
        label_of = {name: label for label, name in enumerate(self.classes)}
        for value, name in zip(values, names, strict=True):
            # A class of the files that is not learnt is ignored, as in mmseg.
            if 0 <= value < _VALUES:
                table[value] = label_of.get(name, self.ignored)
        return table

    def described(self) -> str:
        """The values and what they are, for messages."""
        table = self.table()
        known = np.flatnonzero(table >= 0)
        learnt = [int(value) for value in known if table[value] != self.ignored]
        rest = [int(value) for value in known if table[value] == self.ignored]
        span = f"{learnt[0]} to {learnt[-1]}" if learnt == list(range(learnt[0], learnt[-1] + 1)) else some(learnt)
        return f"the {len(learnt)} classes are {span}, and {' and '.join(map(str, rest))} are not counted"


def read_class_map(file: str | IO[bytes], path: str) -> NDArray[np.integer]:
    """The values in the file of a class map, (height, width); for a palette the indices, but for a GIF's the greys.

    Raises:
        DataError: it has several channels, numbers that are no integers, or a format that does not keep numbers.
        BadImageError: the file cannot be read.
    """
    try:
        if isinstance(file, str):
            check_regular(file)
        with Image.open(file) as image:
            if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
                channels = len(image.getbands())
                raise DataError(
                    f"{path} has {channels} channel{'s' * (channels > 1)} of mode {image.mode}; expected a class map "
                    "of one channel (mode L or P) whose pixels are the numbers of their classes"
                )
            if image.format in ("JPEG", "MPO"):
                raise DataError(f"{path} is a JPEG, which changes the values of pixels; save class maps as PNG")
            values = np.asarray(image if image.format != "GIF" else _greys(image, path))
    except DataError:
        raise
    except _DECODING_ERRORS as error:
        raise BadImageError(f"{path} cannot be read as an image: {error}") from error
    return values.astype(np.uint8) if values.dtype == bool else values


def _greys(image: Image.Image, path: str) -> Image.Image:
    """The grey values of a GIF, whose writers number the colours of each file anew."""
    channels = image.convert("RGB").split()
    if len({channel.tobytes() for channel in channels}) > 1:
        raise DataError(f"{path} is a GIF in colour, where numbers of colours mean nothing; save class maps as PNG")
    return channels[0]


def to_labels(values: NDArray[np.integer], table: NDArray[np.int16], meaning: Meaning, path: str) -> NDArray[np.uint8]:
    """The labels of the pixels of a class map.

    Args:
        values: of `read_class_map`.
        table: `meaning.table()`.
        meaning: of the values.
        path: of the file, for the error.

    Raises:
        DataError: values that stand for no class; names them as they are in the file.

    >>> meaning = Meaning(["road", "tree"])
    >>> to_labels(np.array([[0, 1, 255]]), meaning.table(), meaning, "map.png").tolist()
    [[0, 1, 255]]
    """
    inside = values if values.dtype == np.uint8 else np.where((values >= 0) & (values < _VALUES), values, 0)
    labels = np.take(table, inside, mode="clip")  # twice as fast as an index
    unknown = (labels < 0) | (inside != values) if inside is not values else labels < 0
    if unknown.any():
        told = sorted({int(value) for value in np.unique(values[unknown])})
        raise DataError(
            f"{path} has {int(unknown.sum())} pixels of the unknown class {some(told)}: {meaning.described()}; "
            f"{_mapping(told, meaning)}"
        )
    return labels.astype(np.uint8)


def _mapping(values: Sequence[int], meaning: Meaning) -> str:
    """The end of a sentence that says how values are given a meaning."""
    example = (*range(len(meaning.classes) - 1), max(values)) if len(meaning.classes) > 1 else (max(values),)
    shown = f"({', '.join(map(str, example))})" if len(example) <= 4 else "(...)"
    return (
        "if they stand for classes, give the value in the files of each class with "
        f"metainfo=dict(classes=..., pixel_values={shown}) of the data set"
    )


def check_class_maps(images: Path, maps: Path, image_suffix: str, map_suffix: str) -> list[tuple[str, str]]:
    """Check that there are images, each with a class map; what is left out is counted in the log.

    Args:
        images, maps, image_suffix, map_suffix: see `pair_files`.

    Returns:
        Pairs of an image and its map, sorted.

    Raises:
        DataError: names the images that have none.
    """
    files, there = sorted(_files(images)), set(_files(maps))
    pairs = pair_files(images, maps, image_suffix, map_suffix)
    found = {os.path.relpath(image, images): os.path.relpath(of_image, maps) for image, of_image in pairs}
    if not found:
        others = f"; it has {some(files)}" if files else ""
        raise DataError(
            f"there are no images *{image_suffix} in {images}{others}: set img_suffix to how their names end"
        )
    missing = [name for name, of_name in found.items() if of_name not in there]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(found)} images in {images} have no class map *{map_suffix} in {maps}: "
            f"{some(missing)}"
        )
    others = [name for name in files if name not in found and not (images == maps and name in found.values())]
    if others:
        _logger.warning(
            f"{len(others)} of {len(files)} files in {images} do not end in {image_suffix} (img_suffix) and are no "
            f"other images with a class map of their own; they are left out: {some(others)}"
        )
    unused = {name for name in there if name.endswith(map_suffix)} - set(found.values())
    if unused:
        _logger.warning(f"{len(unused)} files in {maps} are of no image and are left out: {some(sorted(unused))}")
    return pairs


def pair_files(images: Path, maps: Path | None, image_suffix: str, map_suffix: str) -> list[tuple[str, str | None]]:
    """The images of a folder and their class maps, whether these are there or not.

    An image is what ends in `image_suffix`. Where that is an ordinary ending such as ".jpg", images with other ones
    (".JPEG", ".bmp") are read too if they have a class map that is of no image before them.

    Args:
        images, maps: folders; None for images without class maps.
        image_suffix, map_suffix: how the names of an image and of its map end, after the part that both share.

    Returns:
        Paths, sorted by that of the image.
    """
    there = set() if maps is None else set(_files(maps))
    own_map = {}
    names = sorted(_files(images))
    for name in names:
        if name.endswith(image_suffix):
            own_map[name] = name.removesuffix(image_suffix) + map_suffix
    if image_suffix.lower() in IMAGE_SUFFIXES:
        taken = set(own_map.values())
        are_maps = {os.path.relpath(maps / name, images) for name in there} if maps is not None else set()
        for name in names:
            of_name = os.path.splitext(name)[0] + map_suffix
            if name in own_map or name in are_maps or of_name in taken or not is_image_name(name):
                continue
            if maps is None or of_name in there:
                own_map[name] = of_name
                taken.add(of_name)
    pairs = sorted(own_map.items())
    return [(str(images / name), None if maps is None else str(maps / of_name)) for name, of_name in pairs]


def list_pairs(
    file: Path, images: Path, maps: Path | None, image_suffix: str, map_suffix: str
) -> list[tuple[str, str | None]]:
    """The images that a text file lists, one a line, with or without their ending; arguments and pairs as of
    `pair_files`, in the order of the lines.

    Raises:
        DataError: see `lines_in`.
    """
    found = {}
    for image, of_image in pair_files(images, maps, image_suffix, map_suffix):
        name = os.path.relpath(image, images)
        shared = name.removesuffix(image_suffix) if name.endswith(image_suffix) else os.path.splitext(name)[0]
        found[name] = image, of_image
        found.setdefault(shared, (image, of_image))
    return [
        found.get(name)
        or (str(images / f"{name}{image_suffix}"), None if maps is None else str(maps / f"{name}{map_suffix}"))
        for name in lines_in(file)
    ]


def _files(folder: Path) -> Iterator[str]:
    """The regular files of a folder and of the folders in it, links included, relative to it; none that is hidden."""
    for path in walk_files(str(folder)):
        if not any(part.startswith(".") for part in path.split(os.sep)) and (folder / path).is_file():
            yield path


def check_contents(
    pairs: Sequence[tuple[str, str]],
    meaning: Meaning,
    *,
    upright: bool = True,
    is_training: bool = True,
    ignored_by: Sequence[tuple[str, int]] = (),
) -> None:
    """Compare the sizes of images and class maps, and count the classes over the maps: all of few, and some of many.

    Args:
        pairs: of `check_class_maps`.
        meaning: of the values in the maps.
        upright: whether images are read as their EXIF orientation says.
        is_training: otherwise a single class may be all there is.
        ignored_by: the label that each head or metric takes for ignored, after the option that says so.

    Raises:
        DataError: a map of several channels, of another size than its image, or with unknown values; maps without a
            single pixel that counts, or with a single class; ignored pixels that a head or metric would count.
    """
    looked_at = sampled(pairs, COUNTED)
    counts = _count(looked_at, meaning, upright)
    present = _present(counts, meaning)
    if len(present) < min(2, len(meaning.classes)) and len(looked_at) < len(pairs):
        looked_at = pairs  # it may be chance: count them all before refusing
        counts = _count(looked_at, meaning, upright)
        present = _present(counts, meaning)
    check_readable([image for image, _ in looked_at])
    if upright:
        _tell_untold_turns([image for image, _ in looked_at])
    where = os.path.dirname(pairs[0][1])
    maps = f"{len(pairs)} class maps in {where}"
    maps = maps if len(looked_at) == len(pairs) else f"{len(looked_at)} of {maps}"
    _check_present(maps, counts, present, meaning, is_training)
    _check_ignored(maps, counts, meaning, ignored_by)
    _tell_shares(maps, counts, present, meaning, whole=len(looked_at) == len(pairs))


def _tell_untold_turns(images: Sequence[str]) -> None:
    """Count the images whose EXIF orientation leaves their size as it is: it does not tell how their maps lie."""
    heads = {image: read_size(image) for image in images}
    untold = [image for image, (size, turn) in heads.items() if turn > 1 and (turn <= 4 or size[0] == size[1])]
    if untold:
        _logger.warning(
            f"{len(untold)} of {len(images)} images that were looked at are turned by their EXIF orientation and are "
            f"read upright; that their class maps are upright too, their size does not tell (first: {untold[0]})"
        )


def _count(pairs: Sequence[tuple[str, str]], meaning: Meaning, upright: bool) -> NDArray[np.int64]:
    """How many pixels have each value, (256,)."""
    table, counts = meaning.table(), np.zeros(_VALUES, np.int64)
    for image, path in pairs:
        values = read_class_map(path, path)
        check_map_size(values, image, path, upright)
        to_labels(values, table, meaning, path)
        counts += np.bincount(values.ravel(), minlength=_VALUES)
    return counts


def check_map_size(values: NDArray[np.integer], image: str, path: str, upright: bool) -> None:
    """Compare a map with its image, as that is read.

    Raises:
        DataError: names both and their sizes.
    """
    stored, turn = read_size(image)
    turned = stored[::-1] if turn > 4 else stored
    read, size = turned if upright else stored, values.shape[::-1]
    if read != size:
        hint = ""
        if turn > 4 and size == (stored if upright else turned):
            how = "'color_ignore_orientation'" if upright else "'color'"
            hint = f": the image is turned by its EXIF orientation {turn}; set color_type={how} in LoadImageFromFile"
        raise DataError(
            f"the class map {path} is {size[0]} x {size[1]} pixels, and its image {image} {read[0]} x {read[1]}{hint}"
        )


def _present(counts: NDArray[np.int64], meaning: Meaning) -> Mapping[str, int]:
    """The pixels of each class that occurs."""
    table = meaning.table()
    pixels = [int(counts[table == label].sum()) for label in range(len(meaning.classes))]
    return {name: count for name, count in zip(meaning.classes, pixels, strict=True) if count}


def _check_present(
    maps: str, counts: NDArray[np.int64], present: Mapping[str, int], meaning: Meaning, is_training: bool
) -> None:
    """Refuse maps of which nothing can be learnt, such as the common ones with 0 and 255 for two classes."""
    if len(present) >= min(2, len(meaning.classes)):
        return
    values = [int(value) for value in np.flatnonzero(counts)]
    ignored = 1 - sum(present.values()) / counts.sum()
    only = f"the only class is {next(iter(present))}" if present else "no pixel has a class"
    if ignored > 0:
        told = f"{ignored:.0%} of the pixels are ignored in loss and score; {_mapping(values, meaning)}"
    elif is_training:
        told = f"nothing can be learnt from them; {meaning.described()}"
    else:
        return
    raise DataError(f"{maps} have the value{'s' * (len(values) > 1)} {some(values)}, and {only}: {told}")


def _check_ignored(
    maps: str, counts: NDArray[np.int64], meaning: Meaning, ignored_by: Sequence[tuple[str, int]]
) -> None:
    """Refuse ignored pixels whose label is another one to a head, which fails, or to a metric, which counts them."""
    others = [(option, label) for option, label in ignored_by if label != meaning.ignored]
    if others and counts[meaning.table() == meaning.ignored].any():
        option, label = others[0]
        raise DataError(
            f"{maps} have pixels that are not counted, with the label {meaning.ignored} (ignore_index of the data "
            f"set), and {option} is {label}: give both the same"
        )


def _tell_shares(
    maps: str, counts: NDArray[np.int64], present: Mapping[str, int], meaning: Meaning, whole: bool
) -> None:
    total = int(counts.sum())
    shares = sorted(((count / total, name) for name, count in present.items()), reverse=True)
    most = some([f"{name} {share:.1%}" for share, name in shares])
    ignored = 1 - sum(present.values()) / total
    _logger.info(f"{maps}: {len(present)} of {len(meaning.classes)} classes: {most}; ignored {ignored:.1%}")
    absent = [name for name in meaning.classes if name not in present]
    if absent and whole:
        _logger.warning(f"{maps} have no pixel of {len(absent)} of the {len(meaning.classes)} classes: {some(absent)}")
