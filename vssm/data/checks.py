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
