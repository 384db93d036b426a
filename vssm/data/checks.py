"""What the checks of all data have in common: what is missing, and a look at some of the images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from vssm.data.decode import DataError, read_rgb

Item = TypeVar("Item")

# Images whose heads are read: 0.1 ms each; and that are decoded: 5 ms each.
HEADS, DECODED = 500, 20


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
        told = " and ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise DataError(f"{told} {verb} missing: {source}")


def sampled(items: Sequence[Item], most: int = HEADS) -> Sequence[Item]:
    """All of few items, and otherwise evenly spaced ones.

    >>> sampled(range(10), most=4)
    range(0, 10, 3)
    """
    return items[:: max(1, -(-len(items) // most))]


def check_readable(paths: Sequence[str]) -> None:
    """Decode some of the images.

    Raises:
        BadImageError: names one that is truncated, damaged or no image.
    """
    for path in sampled(paths, DECODED):
        read_rgb(path, path)


def wrong_size(
    path: str, listed: tuple[int, int], stored: tuple[int, int], turn: int, upright: bool, lists: str
) -> str:
    """The sentence for an image whose annotations are for another size.

    Args:
        path: of the image.
        listed: (width, height) that the annotations are for.
        stored: (width, height) of the pixels in the file.
        turn: its EXIF orientation.
        upright: whether it is read upright.
        lists: where that size is from.
    """
    read = stored[::-1] if upright and turn > 4 else stored
    told = f"{path} is {read[0]} x {read[1]} pixels, and {lists} {listed[0]} x {listed[1]}"
    if turn > 4 and listed in (stored, stored[::-1]):
        how = "'color_ignore_orientation'" if upright else "'color'"
        of = "as it is stored" if upright else "upright"
        return (
            f"{told}: it is turned by its EXIF orientation {turn}, and the annotations are of the image {of}; set "
            f"color_type={how} in LoadImageFromFile, or save the images upright"
        )
    return f"{told}: the annotations are of another image, or of one that was resized"
