"""Opens a reader of images by its name; each fault is one sentence."""

from __future__ import annotations

import importlib.util
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.data.readers import create_reader
from timm.data.readers.reader import Reader

from vssm.data.classes import classes_of_map, names_in, read_class_map
from vssm.data.decode import IMAGE_SUFFIXES, DataError
from vssm.data.folders import FolderReader, TarReader

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
        ValueError: wrong arguments, a folder without images, or shards whose samples are not as expected.
    """
    where = None if root is None else str(root)
    try:
        if not reader:
            return (TarReader if Path(where).is_file() else FolderReader)(where, **options)
        if isinstance(options.get("class_map"), str | Path):
            options = {**options, "class_map": read_class_map(options["class_map"], _folder_of(where))}
        if prefix_of(reader) == "wds":
            # webdataset puts the endings of names into lower case; timm's own list is shorter.
            more_options["input_key"] = ";".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
        opened = create_reader(reader, root=where, split=split, **{**more_options, **options})
    except (RuntimeError, TypeError, tarfile.TarError) as error:
        raise ValueError(f"reader {reader!r} cannot read {where or split}: {error}") from error
    if prefix_of(reader) == "wds":
        _check_shards(where, opened)
    return opened


def _folder_of(where: str | None) -> Path:
    path = Path(where or "")
    return path.parent if path.is_file() else path


def names_of(opened: Reader, root: str | Path | None, options: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of a reader's own labels, in their order; None where it knows numbers only.

    WebDataset shards have numbers; the file classnames.txt beside them, with one name a line, says what they mean.

    Args:
        opened: by `open_reader`.
        root, options: as given to it.
    """
    if isinstance(opened, FolderReader | TarReader):
        return opened.names
    listed = Path(root or "") / "classnames.txt"
    if listed.is_file() and not options.get("class_map"):
        return tuple(names_in(listed))
    labels = getattr(opened, "class_to_idx", None)
    return classes_of_map(labels) if labels else None


def _check_shards(root: str, opened: Reader) -> None:
    """Refuse shards that are missing, or whose first sample timm would pass over with nothing but a line in the log."""
    names = opened.split_info.filenames
    files = [Path(root) / name for name in names if "://" not in f"{root}{name}" and "::" not in name]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(names)} shards are not there, the first of them {missing[0]}")
    if not files:
        return
    with tarfile.open(files[0], "r:*") as archive:
        members, first = {}, None
        for member in filter(tarfile.TarInfo.isreg, archive):  # as webdataset, which passes over links and folders
            key, _, suffix = member.name.rpartition("/")[2].partition(".")
            if first not in (None, key):
                break
            first, members[suffix.lower()] = key, member
        images = opened.input_key.split(";")
        if not any(suffix in members for suffix in images):
            raise DataError(
                f"{files[0]}: its first sample has {', '.join(sorted(members)) or 'nothing'}, and no "
                f"image; read are {', '.join(images)}, or what input_key says in reader_options"
            )
        if opened.target_key is None and not opened.split_info.alt_label:
            label = archive.extractfile(members["cls"]).read(100) if "cls" in members else b""
            if not label.strip().isdigit():
                raise DataError(
                    f"{files[0]}: the label of its first sample is {label.decode(errors='replace')!r}; expected a "
                    "number in its file .cls, with the names of the classes in a file classnames.txt beside the shards"
                )
