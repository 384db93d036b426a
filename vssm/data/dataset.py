"""Labelled images from a folder, a tar file, a Hugging Face data set or streamed shards."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from PIL import Image
from timm.data.readers.reader import Reader
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from vssm.data.checks import DECODED, sampled
from vssm.data.classes import check_distinct, labels_by_name, some
from vssm.data.decode import IMAGE_SUFFIXES, BadImageError, DataError, decoded_rgb, read_rgb, read_size
from vssm.data.folders import FolderReader, TarReader
from vssm.data.locate import find_split
from vssm.data.readers import STREAMED, names_of, open_reader, prefix_of
from vssm.data.shapes import ensure_shapes
from vssm.data.silhouettes import KINDS
from vssm.data.transforms import Transform, build_transform
from vssm.files import FileError

_logger = logging.getLogger(__name__)

# This many unreadable images in a row mean a lost disk or a wrong path, not a few broken files.
MOST_BAD_IN_A_ROW = 10


class _Labelled:
    """The classes of a data set, and the labels of its reader in terms of them."""

    source: str
    classes: tuple[str, ...] | None
    num_classes: int | None
    _label_of: list[int] | None

    def _set_classes(self, names: Sequence[str] | None, classes: Sequence[str] | None, num_classes: int | None) -> None:
        """Number the reader's own names as the given classes are; without any, in the reader's order.

        Labels that are numbers without names are places in the given classes.
        """
        self.classes = tuple(classes or names or ()) or None
        self._label_of = None
        if self.classes:
            check_distinct(self.classes, self.source)
            if num_classes is not None and len(self.classes) > num_classes:
                raise DataError(
                    f"{self.source} has {len(self.classes)} classes ({some(self.classes)}), but num_classes="
                    f"{num_classes}; set num_classes={len(self.classes)} in the model and the data, or remove what is "
                    "no class"
                )
        if classes and names:
            self._label_of = labels_by_name(names, self.classes, self.source)
        elif classes:
            _logger.warning(f"{self.source} has no names of classes: its labels count in the order {some(classes)}")
        self.num_classes = len(self.classes) if num_classes is None and self.classes else num_classes

    def _sample(self, inputs: Tensor, label: int, path: str) -> dict[str, Any]:
        return {"inputs": inputs, "label": self._label(label, path), "path": path}

    def _label(self, label: int, path: str) -> int:
        """The label in terms of `classes` of one that the reader gives."""
        label, count = int(label), len(self._label_of) if self._label_of else self.num_classes
        if label < 0 or (count is not None and label >= count):
            allowed = "0 or more" if count is None else f"0 to {count - 1} (num_classes={count})"
            raise DataError(f"{path} has the label {label}; expected {allowed}")
        return self._label_of[label] if self._label_of else label


class ImageDataset(_Labelled, Dataset):
    """Labelled images with random access.

    Args:
        root: folder or tar file of the data (see `split`); for a Hugging Face data set its cache folder or None.
        split: folder ROOT/SPLIT or tar file ROOT/SPLIT.tar with a folder per class; empty if root itself holds them.
            For a Hugging Face data set the name of its split.
        reader: empty for a folder or tar; "hfds/NAME" for a Hugging Face data set, by name or as "hfds/PATH".
        transform: from an RGB image to a tensor, or its plain data (see vssm.data.transforms).
        num_classes: labels must lie below it; None allows any.
        skip_bad_images: report an image that cannot be read, count it, and use the next one instead. False raises
            BadImageError: right for evaluation, where a replaced image would falsify the score.
        classes: names of the classes in the order of the labels: the training set's, for any other set. Images are
            labelled by the names of their folders, or those that a Hugging Face data set has. None for a training set:
            its folders, sorted as text as in torchvision, or the order of the Hugging Face data set.
        reader_options: further arguments of the reader, such as class_map, input_key or target_key.

    Attributes:
        classes: the names; None where the reader has numbers only.

    Raises:
        FileNotFoundError: no data at root; the message shows the layout.
        ValueError: a class folder without images in a training set, a name that is none of the classes, more classes
            than num_classes, an unknown reader.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "",
        *,
        transform: Transform | Mapping[str, Any],
        reader: str = "",
        num_classes: int | None = None,
        classes: Sequence[str] | None = None,
        skip_bad_images: bool = False,
        reader_options: Mapping[str, Any] | None = None,
    ) -> None:
        prefix = prefix_of(reader)
        if prefix in STREAMED:
            raise ValueError(
                f"reader {reader!r} reads its data as a stream; use StreamedImageDataset, and no sampler in the loader"
            )
        options = reader_options or {}
        if prefix:
            self.source = f"{reader}[{split}]"
            self.reader = open_reader(reader, root, split, options)
        else:
            where = find_split(root, split)
            self.source = str(where)
            self.reader = open_reader(reader, where, split, options)
            _tell_what_is_left_out(self.reader, mapped="class_map" in options, is_training=classes is None)
        self._set_classes(names_of(self.reader, None, options), classes, num_classes)
        self.transform = build_transform(transform)
        self.skip_bad_images = skip_bad_images
        # One flag per image in shared memory, so that the main process counts what loader workers find.
        self._bad = torch.zeros(len(self.reader), dtype=torch.bool).share_memory_()

    @property
    def bad_images(self) -> int:
        """Number of different images that could not be read so far, over all loader workers."""
        return int(self._bad.sum())

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample: inputs (channels, height, width), label and path."""
        for _ in range(MOST_BAD_IN_A_ROW):
            try:
                return self._read(index)
            except BadImageError as error:
                if not self.skip_bad_images:
                    raise
                self._report(index, error)
                last = error
                index = (index + 1) % len(self)
        raise DataError(f"{MOST_BAD_IN_A_ROW} images in a row could not be read, so this stops here: {last}")

    def check_sample(self) -> None:
        """Read some of the images, spread over the set, as far as their heads, and decode a few.

        Raises:
            BadImageError: names one that cannot be read.
            DataError: names one whose label is none.
        """
        if isinstance(self.reader, FolderReader):
            for index in sampled(range(len(self))):
                read_size(self.reader.path(index))
        for index in sampled(range(len(self)), DECODED):
            _, label, path = self._load(index)
            self._label(label, path)

    def _read(self, index: int) -> dict[str, Any]:
        image, label, path = self._load(index)
        return self._sample(self.transform(image), label, path)

    def _load(self, index: int) -> tuple[Image.Image, int, str]:
        """An image, the label that its reader gives it, and what errors call it."""
        try:
            file, label = self.reader[index]
        except (OSError, FileError) as error:
            raise BadImageError(f"image {index} of {self.source} cannot be opened: {error}") from error
        with file:
            path = self._path(index, file)
            return read_rgb(file, path), label, path

    def _path(self, index: int, file: IO[bytes]) -> str:
        if isinstance(self.reader, FolderReader | TarReader):
            return self.reader.path(index)
        return getattr(file, "name", f"{self.source}[{index}]")  # a row of a table has no file

    def _report(self, index: int, error: BadImageError) -> None:
        if not self._bad[index]:
            self._bad[index] = True
            _logger.warning("%s; skipped (%d bad images so far)", error, self.bad_images)


class StreamedImageDataset(_Labelled, IterableDataset):
    """Labelled images read as a stream: WebDataset shards (wds), streamed Hugging Face (hfids) or TFDS data.

    The loader takes no sampler: the reader shuffles, and distributes shards over processes and workers. timm's readers
    skip an image that cannot be decoded, with a warning of their own and without a count.

    Args:
        reader: "wds/", "hfids/NAME" or "tfds/NAME".
        root: folder or URL of the shards.
        split: part of the data; for shards their names, such as "train-{0000..0127}.tar|1281167" with the number of
            images, or a split of ROOT/_info.json.
        transform, num_classes, classes: as for ImageDataset; shards have names of classes in a file classnames.txt.
        is_training: shuffle, and repeat to fill the last batch.
        batch_size: of the loader, with is_training.
        reader_options: further arguments of the timm reader.

    Raises:
        FileNotFoundError: shards that are not there.
        ValueError: an unknown reader, or one that refuses its arguments.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        *,
        transform: Transform | Mapping[str, Any],
        reader: str,
        num_classes: int | None = None,
        classes: Sequence[str] | None = None,
        is_training: bool = False,
        batch_size: int = 1,
        reader_options: Mapping[str, Any] | None = None,
    ) -> None:
        if prefix_of(reader) not in STREAMED:
            raise ValueError(f"reader {reader!r} does not stream; use ImageDataset")
        # An empty image mode leaves the conversion to to_rgb, because Pillow's clips 16-bit images.
        options = dict(is_training=is_training, batch_size=batch_size, input_img_mode="")
        self.reader = open_reader(reader, root, split, reader_options or {}, **options)
        self.source = f"{reader}[{split}]"
        self._set_classes(names_of(self.reader, root, reader_options or {}), classes, num_classes)
        self.transform = build_transform(transform)

    def __len__(self) -> int:
        return len(self.reader)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle differently in each epoch."""
        self.reader.set_epoch(epoch)

    def set_workers(self, num_workers: int) -> None:
        """Tell the reader how many loader workers share it; its length depends on that."""
        self.reader.set_loader_cfg(num_workers=num_workers)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for position, (image, label) in enumerate(self.reader):
            path = f"{self.source}[{position}]"
            yield self._sample(self.transform(decoded_rgb(image, path)), label, path)


class ShapesDataset(ImageDataset):
    """The embedded set of ten kinds of shapes, drawn at first use (see vssm.data.shapes).

    Args:
        root: folder that holds embedded sets.
        split: "train" or "val".
        transform: as for ImageDataset.
        train, val, image_size, seed: of the set, as for ensure_shapes.
        classes: the names of the kinds in the order of the labels, as for ImageDataset.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        transform: Transform | Mapping[str, Any],
        train: int = 8000,
        val: int = 1000,
        image_size: int = 64,
        seed: int = 0,
        classes: Sequence[str] = KINDS,
    ) -> None:
        folder = ensure_shapes(root, train=train, val=val, image_size=image_size, seed=seed)
        super().__init__(folder, split, transform=transform, classes=classes)


def _tell_what_is_left_out(reader: Reader, *, mapped: bool, is_training: bool) -> None:
    """Log what is no image, and refuse a training set with an empty class folder: it is a class that is not there.

    Args:
        reader: of a folder or tar file.
        mapped: whether labels come from a class map, which may leave folders out.
        is_training: otherwise the classes are known, and a set may lack some.
    """
    if reader.skipped:
        links = ", or links" if isinstance(reader, TarReader) else ""
        _logger.warning(
            f"{reader.root}: {len(reader.skipped)} files are hidden or no images by their names{links}, and are left "
            f"out: {some(sorted(reader.skipped))}"
        )
    empty = reader.empty_folders() if isinstance(reader, FolderReader) and not mapped else []
    if empty and is_training:
        raise DataError(
            f"{reader.root} has class folders without images: {some(empty)}; fill or remove them "
            f"(read are {', '.join(IMAGE_SUFFIXES)})"
        )
    if empty:
        _logger.warning(f"{reader.root}: the folders without images are left out: {some(empty)}")
