"""Labelled images from a folder, a tar file, a Hugging Face data set or streamed shards, through timm's readers."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from vssm.data.decode import BadImageError, DataError, read_rgb, to_rgb
from vssm.data.locate import check_folder_classes, find_split
from vssm.data.readers import STREAMED, open_reader, prefix_of
from vssm.data.shapes import ensure_shapes
from vssm.data.silhouettes import KINDS
from vssm.data.transforms import Transform, build_transform
from vssm.files import FileError, check_regular

_logger = logging.getLogger(__name__)

# This many unreadable images in a row mean a lost disk or a wrong path, not a few broken files.
MOST_BAD_IN_A_ROW = 10


class ImageDataset(Dataset):
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
        reader_options: further arguments of the timm reader, such as class_map, input_key or target_key.

    Raises:
        FileNotFoundError: no data at root; the message shows the layout.
        ValueError: a class folder without images, more classes than num_classes, an unknown reader.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "",
        *,
        transform: Transform | Mapping[str, Any],
        reader: str = "",
        num_classes: int | None = None,
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
            # An open tar file would be shared with loader workers, which would move each other's file position.
            defaults = dict(cache_tarfiles=False) if where.is_file() else {}
            self.reader = open_reader(reader, where, split, {**defaults, **options})
            check_folder_classes(where, self.reader, num_classes, mapped="class_map" in options)
        self.transform = build_transform(transform)
        self.num_classes = num_classes
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

    def _read(self, index: int) -> dict[str, Any]:
        try:
            if isinstance(self.reader, ReaderImageFolder):
                check_regular(self.reader.filename(index, absolute=True))
            file, label = self.reader[index]
        except (OSError, FileError) as error:
            raise BadImageError(f"image {index} of {self.source} cannot be opened: {error}") from error
        with file:
            path = self._path(index, file)
            image = read_rgb(file, path)
        return _sample(self.transform(image), label, path, self.num_classes)

    def _path(self, index: int, file: io.IOBase) -> str:
        if isinstance(file, io.BytesIO):
            return f"{self.source}[{index}]"  # a row of a table: to look up its path would read the row again
        name = self.reader.filename(index, absolute=True)
        return name if Path(name).is_absolute() else f"{self.source}:{name}"

    def _report(self, index: int, error: BadImageError) -> None:
        if not self._bad[index]:
            self._bad[index] = True
            _logger.warning("%s; skipped (%d bad images so far)", error, self.bad_images)


class StreamedImageDataset(IterableDataset):
    """Labelled images read as a stream: WebDataset shards (wds), streamed Hugging Face (hfids) or TFDS data.

    The loader takes no sampler: the reader shuffles, and distributes shards over processes and workers. timm's readers
    skip an image that cannot be decoded, with a warning of their own and without a count.

    Args:
        reader: "wds/", "hfids/NAME" or "tfds/NAME".
        root: folder or URL of the shards.
        split: part of the data; for shards their names, such as "train-{0000..0127}.tar|1281167" with the number of
            images, or a split of ROOT/_info.json.
        transform, num_classes: as for ImageDataset.
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
        self.transform = build_transform(transform)
        self.num_classes = num_classes

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
            yield _sample(self.transform(to_rgb(image)), label, path, self.num_classes)


class ShapesDataset(ImageDataset):
    """The embedded set of ten kinds of shapes, drawn at first use (see vssm.data.shapes).

    Args:
        root: folder that holds embedded sets.
        split: "train" or "val".
        transform: as for ImageDataset.
        train, val, image_size, seed: of the set, as for ensure_shapes.
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
    ) -> None:
        folder = ensure_shapes(root, train=train, val=val, image_size=image_size, seed=seed)
        super().__init__(folder, split, transform=transform, num_classes=len(KINDS))


def _sample(inputs: Tensor, label: int, path: str, num_classes: int | None) -> dict[str, Any]:
    label = int(label)
    if label < 0 or (num_classes is not None and label >= num_classes):
        allowed = "0 or more" if num_classes is None else f"0 to {num_classes - 1} (num_classes={num_classes})"
        raise DataError(f"{path} has the label {label}; expected {allowed}")
    return {"inputs": inputs, "label": label, "path": path}
