"""Readers of images in class folders, on the disk or inside a tar file.

A class is the folder that an image lies in. Hidden files and folders, and files that are no images by their names, are
left out and listed in `skipped`.
"""

from __future__ import annotations

import io
import logging
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from timm.data.readers.reader import Reader

from vssm.data.classes import classes_of_map, composed, read_class_map, some, sorted_classes
from vssm.data.decode import IMAGE_SUFFIXES, DataError, is_image_name
from vssm.files import check_regular

_logger = logging.getLogger(__name__)

# Folders that systems leave among data, beside those whose names begin with a dot.
_JUNK = {"__MACOSX", "__pycache__", "@eaDir", "lost+found"}


class FolderReader(Reader):
    """Images on the disk; links to folders are followed.

    Args:
        root: the folder of class folders.
        class_map: folder names to labels, or a file of them (see `read_class_map`); other folders are left out.
        input_key: endings of the files to read, separated by semicolons; by default those of images.

    Raises:
        DataError: images in no class folder, or beside folders of images; no images at all.
    """

    def __init__(self, root: str | Path, class_map: dict | str = "", input_key: str | None = None) -> None:
        super().__init__()
        self.root = str(root)
        suffixes = tuple(input_key.lower().split(";")) if input_key else None
        self.skipped: list[str] = []
        found = []
        for path in walk_files(self.root):
            wanted = is_image_name(path) if suffixes is None else path.lower().endswith(suffixes)
            (found if wanted and not is_hidden(path) else self.skipped).append(path)
        self.names, self.samples = _by_class(self.root, found, class_map, self.skipped)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        path = self.path(index)
        check_regular(path)
        return open(path, "rb"), self.samples[index][1]

    def path(self, index: int) -> str:
        """The file of an image."""
        return os.path.join(self.root, self.samples[index][0])

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self.samples[index][0]
        return os.path.basename(name) if basename else self.path(index) if absolute else name

    def empty_folders(self) -> list[str]:
        """Class folders without images."""
        filled = {part for path, _ in self.samples for part in PurePosixPath(path).parts[:1]}
        return sorted(
            entry.name
            for entry in os.scandir(self.root)
            if entry.is_dir() and not is_hidden(entry.name) and entry.name not in filled
        )


class TarReader(Reader):
    """Images in a tar file that is not compressed, or in tar files inside it, each of which counts as a folder.

    Only the places of the files are noted, so workers share no open file.

    Args:
        root: the tar file.
        class_map: as for `FolderReader`.

    Raises:
        DataError: as for `FolderReader`.
        tarfile.TarError: no tar file, or one that is cut short.
    """

    def __init__(self, root: str | Path, class_map: dict | str = "") -> None:
        super().__init__()
        self.root = str(root)
        self.skipped: list[str] = []
        with open(self.root, "rb") as file:
            places = dict(_members(file, "", 0))
        images = [name for name in places if places[name] and is_image_name(name) and not is_hidden(name)]
        self.skipped = sorted(places.keys() - images)
        self.names, self.samples = _by_class(self.root, images, class_map, self.skipped)
        self.places = [places[name] for name, _ in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        offset, size = self.places[index]
        with open(self.root, "rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size)), self.samples[index][1]

    def path(self, index: int) -> str:
        """The tar file and the name of an image in it."""
        return f"{self.root}:{self.samples[index][0]}"

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self.samples[index][0]
        return os.path.basename(name) if basename else self.path(index) if absolute else name


def walk_files(root: str) -> Iterator[str]:
    """The files below a folder, relative to it. Links are followed, but for those back to a folder above."""
    above: dict[str, tuple[str, ...]] = {root: (os.path.realpath(root),)}
    for folder, inner, files in os.walk(root, followlinks=True):
        real = above.pop(folder)
        kept = []
        for name in inner:
            path = os.path.join(folder, name)
            target = os.path.realpath(path) if os.path.islink(path) else os.path.join(real[-1], name)
            if target not in real:
                kept.append(name)
                above[path] = (*real, target)
        inner[:] = kept
        relative = os.path.relpath(folder, root) if folder != root else ""
        yield from (os.path.join(relative, name) for name in files)


def _members(file: IO[bytes], folder: str, start: int) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """The files in a tar file, each with the place of its bytes: where they begin, and how many there are.

    None for what has no bytes of its own: a symbolic link, or a hard link to a file that is not in the tar file.
    """
    places: dict[str, tuple[int, int]] = {}
    clean: dict[str, str] = {}  # folders, without "./"
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # a kilobyte each
            if member.islnk() and member.linkname in places:
                place = places[member.linkname]
            elif member.isreg() and not member.issparse():
                place = start + member.offset_data, member.size
            elif member.isdir():
                continue
            else:
                place = None
            places[member.name] = place
            above, _, name = member.name.lstrip("/").rpartition("/")  # as tar itself unpacks absolute names
            if above not in clean:
                clean[above] = str(PurePosixPath(folder, above))
            name = name if clean[above] == "." else f"{clean[above]}/{name}"
            if place and name.lower().endswith(".tar"):
                inner = archive.extractfile(member)
                yield from _members(inner, name[: -len(".tar")], place[0])
            else:
                yield name, place
        # Python takes a header that is cut or damaged for the end, which is a block of zeros.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"it is cut short or damaged at byte {start + archive.offset}")


def is_hidden(path: str) -> bool:
    """Whether a file, or a folder above it, is hidden or junk of a system."""
    return any(part.startswith(".") or part in _JUNK for part in path.split(os.sep))


def _by_class(
    root: str, paths: list[str], class_map: dict | str, skipped: list[str]
) -> tuple[tuple[str, ...], list[tuple[str, int]]]:
    """The names of the classes in the order of their labels, and the images with their labels, sorted as text."""
    labelled = [(path, os.path.basename(os.path.dirname(path))) for path in sorted(paths)]
    _check_places(root, [path for path, _ in labelled])
    if class_map:
        chosen = read_class_map(class_map, root)
        names = classes_of_map(chosen)
        chosen = {composed(name): label for name, label in chosen.items()}
        labelled = [(path, composed(name)) for path, name in labelled]
        _tell_differences(root, [name for _, name in labelled], chosen)
    else:
        names = sorted_classes(name for _, name in labelled)
        chosen = {name: label for label, name in enumerate(names)}
    samples = [(path, chosen[name]) for path, name in labelled if name in chosen]
    if not samples:
        folders = f"the class folders {some(list(chosen))}" if chosen else "class folders"
        others = f"; there are {len(skipped)} other files: {some(sorted(skipped))}" if skipped else ""
        raise DataError(f"{root} has no images in {folders}{others} (read are {', '.join(IMAGE_SUFFIXES)})")
    return names, samples


def _tell_differences(root: str, folders: list[str], chosen: dict[str, int]) -> None:
    """Log which folders are not in a class map, and which of its folders have no images."""
    others = [name for name in folders if name not in chosen]
    if others:
        _logger.warning(
            f"{root}: {len(others)} of {len(folders)} images lie in folders that are not in class_map and are left "
            f"out: {some(sorted(set(others)))}"
        )
    absent = sorted(chosen.keys() - set(folders))
    if absent:
        _logger.warning(f"{root}: there are no images of {len(absent)} folders in class_map: {some(absent)}")


def _check_places(root: str, paths: list[str]) -> None:
    """Refuse images in no class folder, and folders that hold images beside folders of images."""
    folders = {os.path.dirname(path) for path in paths}
    deep = sorted(folder for folder in folders if os.path.dirname(folder))
    if deep:
        _logger.warning(f"{root}: the class of an image is the name of its innermost folder, such as in {some(deep)}")
    if "" in folders:
        stray = next(path for path in paths if not os.path.dirname(path))
        raise DataError(
            f"{root} holds images that lie in no class folder, such as {stray}; expected one folder per class"
        )
    for folder in sorted(folders):
        above = os.path.dirname(folder)
        while above:
            if above in folders:
                raise DataError(
                    f"{os.path.join(root, above)} holds images and the folder {os.path.relpath(folder, above)} of "
                    "images: which is the class? Move the images of one class into one folder"
                )
            above = os.path.dirname(above)
