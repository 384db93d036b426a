"""Opens timm's readers; each fault is one sentence."""

from __future__ import annotations

import importlib.util
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.data.readers import create_reader
from timm.data.readers.reader import Reader

# Prefixes of reader names: with random access, and as a stream. No name means a folder or a tar file.
INDEXED = ("hfds",)
STREAMED = ("wds", "hfids", "tfds")
# The package that each needs beside timm: its name to import, and to install.
_PACKAGES = {
    "hfds": ("datasets", "datasets"),
    "hfids": ("datasets", "datasets"),
    "wds": ("webdataset", "webdataset"),
    "tfds": ("tensorflow_datasets", "tensorflow tensorflow-datasets"),
}


def prefix_of(reader: str) -> str:
    """The prefix of a reader's name, such as `hfds` of `hfds/imagenet-1k`; empty for a folder or tar file.

    Raises:
        ValueError: no reader has that name.
        ImportError: it needs a package that is not installed.
    """
    prefix, slash, _ = reader.partition("/")
    prefix = prefix.lower()
    if not reader:
        return ""
    if not slash or prefix not in _PACKAGES:
        known = ", ".join(f"{name}/..." for name in _PACKAGES)
        raise ValueError(f"no reader is named {reader!r}; known: '' for a folder or tar, {known}")
    module, package = _PACKAGES[prefix]
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"reader {reader!r} needs a package that is not installed: pip install {package}")
    return prefix


def open_reader(
    reader: str, root: str | Path | None, split: str, options: Mapping[str, Any], **more_options: Any
) -> Reader:
    """Open a reader by its name.

    Args:
        reader, root, split: as for timm's create_reader; a folder or tar file is root itself.
        options: the user's further arguments of the reader.
        more_options: arguments that a data set sets.

    Raises:
        FileNotFoundError: missing shards, which timm would skip.
        ValueError: wrong arguments, or a folder without images, in timm's words.
    """
    where = None if root is None else str(root)
    try:
        opened = create_reader(reader, root=where, split=split, **more_options, **options)
    except (RuntimeError, TypeError, tarfile.TarError) as error:
        raise ValueError(f"reader {reader!r} cannot read {where or split}: {error}") from error
    if prefix_of(reader) == "wds":
        _check_shards(str(where), opened.split_info.filenames)
    return opened


def _check_shards(root: str, names: tuple[str, ...]) -> None:
    files = [Path(root) / name for name in names if "://" not in f"{root}{name}" and "::" not in name]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(names)} shards are not there, the first of them {missing[0]}")
