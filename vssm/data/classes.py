"""Classes by name: a training set's names in the order of its labels are the classes of everything that follows.

Validation and test sets, and the checkpoint, are compared with them by name; no folder or file has an order of its own.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from vssm.data.decode import DataError
from vssm.files import FileError, check_regular

_logger = logging.getLogger(__name__)


def sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    """The default order: sorted as text, as in torchvision, with whose order official checkpoints were trained.

    >>> sorted_classes(["b", "a", "B", "10", "9"])
    ('10', '9', 'B', 'a', 'b')
    """
    return tuple(sorted(set(names)))


def composed(name: str) -> str:
    """A name by which others are compared: an accent may be a part of its letter or a character behind it, as in the
    names of files from macOS.

    >>> composed("e\u0301") == "\u00e9"
    True
    """
    return unicodedata.normalize("NFC", name)


def lines_in(file: str | Path) -> list[str]:
    """The lines of a text file in UTF-8, with or without a byte order mark; blank lines at its end are none.

    Raises:
        DataError: no regular file, no such text, none at all, or a blank line between others.
    """
    try:
        check_regular(file)
        lines = [line.strip() for line in Path(file).read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except FileError as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no text in UTF-8: {error}; save it as UTF-8") from error
    if lines == [""]:
        raise DataError(f"{file} is empty; expected a name on each line")
    if "" in lines:
        raise DataError(f"line {lines.index('') + 1} of {file} is blank; expected a name on each line")
    return lines


def names_in(file: Path) -> list[str]:
    """The names in a file, one a line; see `lines_in`.

    A name that comes again, such as crane in lists for ImageNet, the bird and the machine, gets its place behind it.
    """
    names = lines_in(file)
    first = {name: place for place, name in reversed(list(enumerate(names)))}
    return [name if first[name] == place else f"{name} ({place})" for place, name in enumerate(names)]


def read_class_map(class_map: Mapping[str, int] | str | Path, root: str | Path) -> dict[str, int]:
    """The label of each folder.

    Args:
        class_map: a mapping, or a text file with the name of a folder on each line, in the order of the labels.
        root: the folder of the data, where a file is looked for too.

    Raises:
        DataError: no such file, a folder that is named twice, or a label that is no whole number from 0 on.
    """
    if not isinstance(class_map, Mapping):
        file = next((path for path in (Path(class_map), Path(root, class_map)) if path.is_file()), None)
        if file is None or file.suffix.lower() != ".txt":
            what = f"there is no class map {class_map}" if file is None else f"the class map {file} is no .txt file"
            raise DataError(f"{what}; expected a text file with the name of a folder on each line, or a mapping")
        names = lines_in(file)
        check_distinct(names, str(file))
        return {name: label for label, name in enumerate(names)}
    for name, label in class_map.items():
        if not isinstance(label, Integral) or label < 0:
            raise DataError(f"class_map gives {name} the label {label!r}; expected a whole number from 0 on")
    return {str(name): int(label) for name, label in class_map.items()}


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
    label_of = {composed(name): label for label, name in enumerate(classes)}
    unknown = [name for name in names if composed(name) not in label_of]
    if unknown:
        raise DataError(
            f"{source} has {len(unknown)} classes that are none of the training's: {some(unknown)}; those are "
            f"{some(classes)} ({len(classes)} in all)"
        )
    present = set(map(composed, names))
    absent = [name for name in classes if composed(name) not in present]
    if absent:
        _logger.warning(f"{source} has nothing of {len(absent)} of the {len(classes)} classes: {some(absent)}")
    return [label_of[composed(name)] for name in names]


def check_distinct(classes: Sequence[str], source: str) -> None:
    """Refuse a list of classes in which a name comes twice.

    Raises:
        DataError: names it.
    """
    counts = Counter(map(composed, classes))
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise DataError(f"{source}: the classes have the name {some(twice)} more than once")


def some(items: Sequence[Any]) -> str:
    """The first five of some things, and how many more there are.

    >>> some(range(7))
    '0, 1, 2, 3, 4 and 2 more'
    """
    told = ", ".join(str(item) for item in items[:5])
    return told if len(items) <= 5 else f"{told} and {len(items) - 5} more"
