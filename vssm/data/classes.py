"""Classes by name: a training set's names in the order of its labels are the classes of everything that follows.

Validation and test sets, and the checkpoint, are compared with them by name; no folder or file has an order of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vssm.data.decode import DataError

_logger = logging.getLogger(__name__)


def sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    """The default order: sorted as text, as in torchvision, with whose order official checkpoints were trained.

    >>> sorted_classes(["b", "a", "B", "10", "9"])
    ('10', '9', 'B', 'a', 'b')
    """
    return tuple(sorted(set(names)))


def names_in(file: Path) -> list[str]:
    """The names in a file, one a line; blank lines at its end are none.

    A name that comes again, such as crane in lists for ImageNet, the bird and the machine, gets its place behind it.

    Raises:
        UnicodeDecodeError: the file is no text in UTF-8.
    """
    names = file.read_text(encoding="utf-8-sig").rstrip().split("\n")
    first = {name: place for place, name in reversed(list(enumerate(names)))}
    return [name if first[name] == place else f"{name} ({place})" for place, name in enumerate(names)]


def classes_of_map(class_map: Mapping[str, int]) -> tuple[str, ...]:
    """The names of the labels that a mapping from folders to labels makes; folders of one label share its name.

    >>> classes_of_map({"car": 0, "van": 0, "bus": 2})
    ('car/van', 'class 1', 'bus')
    """
    merged: dict[int, list[str]] = {}
    for name, label in class_map.items():
        merged.setdefault(int(label), []).append(str(name))
    return tuple(
        "/".join(sorted(merged[label])) if label in merged else f"class {label}" for label in range(max(merged) + 1)
    )


def labels_by_name(names: Sequence[str], classes: Sequence[str], source: str) -> list[int]:
    """For each of a data set's own names the label of that class.

    Args:
        names: of the data set, in its own order.
        classes: those to learn, or that were learnt, in the order of the labels.
        source: the data set, for messages.

    Raises:
        DataError: names that are no class. Classes that the data set lacks are a warning.

    >>> labels_by_name(["bee", "ant"], ["ant", "bee", "cat"], "val")
    [1, 0]
    """
    label_of = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in names if name not in label_of]
    if unknown:
        raise DataError(
            f"{source} has {len(unknown)} classes that are none of the training's: {some(unknown)}; those are "
            f"{some(classes)} ({len(classes)} in all)"
        )
    absent = [name for name in classes if name not in set(names)]
    if absent:
        _logger.warning(f"{source} has nothing of {len(absent)} of the {len(classes)} classes: {some(absent)}")
    return [label_of[name] for name in names]


def check_distinct(classes: Sequence[str], source: str) -> None:
    """Refuse a list of classes in which a name comes twice.

    Raises:
        DataError: names it.
    """
    twice = (
        sorted({name for name in classes if list(classes).count(name) > 1}) if len(set(classes)) < len(classes) else []
    )
    if twice:
        raise DataError(f"{source}: the classes have the name {some(twice)} more than once")


def some(items: Sequence[Any]) -> str:
    """The first five of some things, and how many more there are.

    >>> some(range(7))
    '0, 1, 2, 3, 4 and 2 more'
    """
    told = ", ".join(str(item) for item in items[:5])
    return told if len(items) <= 5 else f"{told} and {len(items) - 5} more"
