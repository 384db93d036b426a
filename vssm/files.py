"""Files: only regular ones are opened, and what is written is whole or absent."""

import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vssm.errors import ConfigError

# A file under Git LFS that was not fetched is a few lines of text that begin so.
_LFS_POINTER = b"version https://git-lfs"
_LFS_POINTER_SIZE = 1024


class FileError(ValueError):
    """A file that was not opened, or not unpacked. The message goes after the file's name."""


def check_regular(path: str | Path) -> None:
    """Refuse what is no regular file: opening a named pipe waits for ever, and a device may have no end.

    Raises:
        FileError: says what it is instead; also of a pointer that Git LFS left in place of the file.

    >>> check_regular("/dev/null")
    Traceback (most recent call last):
    vssm.files.FileError: it is a device; expected a regular file
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise FileError(f"it cannot be opened: {error.strerror}") from error
    mode = status.st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_ISDIR: "folder", stat.S_ISFIFO: "named pipe", stat.S_ISSOCK: "socket"}
        kind = next((name for is_kind, name in kinds.items() if is_kind(mode)), "device")
        raise FileError(f"it is a {kind}; expected a regular file")
    if len(_LFS_POINTER) < status.st_size < _LFS_POINTER_SIZE and _begins_with(path, _LFS_POINTER):
        raise FileError("it is a pointer of Git LFS, not the file itself; fetch it with: git lfs pull")


def _begins_with(path: str | Path, start: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(start)) == start
    except OSError as error:
        raise FileError(f"it cannot be opened: {error.strerror}") from error


def make_directory(directory: Path, option: str) -> None:
    """Make a directory, and check that files can be written there.

    Args:
        directory: made with its parents.
        option: the command-line option that chooses another, for the error.

    Raises:
        ConfigError: it cannot be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"probe")
    except OSError as error:
        raise ConfigError(
            f"the directory {directory} cannot be written: {error.strerror}; choose another with {option}"
        ) from error


def check_outputs(
    outputs: Iterable[Path], option: str, overwrite: bool, inputs: Iterable[str | Path | None] = ()
) -> None:
    """Refuse to write over files of the user, before any work is done.

    Args:
        outputs: the files that will be written.
        option: the command-line option that names them, for the error.
        overwrite: whether earlier results may be replaced; inputs never are.
        inputs: files that the command reads; None for one that is not given.

    Raises:
        ConfigError: an output exists, or is an input.

    >>> check_outputs([Path("/dev/null")], "--out", overwrite=False)
    Traceback (most recent call last):
    vssm.errors.ConfigError: --out: /dev/null exists already: choose another name, or allow it with --overwrite
    """
    read = {os.path.realpath(path) for path in inputs if path is not None}
    for path in outputs:
        if os.path.realpath(path) in read:
            raise ConfigError(f"{option}: {path} would overwrite an input of this command: choose another name")
        if path.is_dir():
            raise ConfigError(f"{option}: {path} is a folder; expected the name of a file")
        if path.is_symlink() and not path.exists():
            raise ConfigError(f"{option}: {path} is a link to nothing: choose another name, or remove it")
        if not overwrite and os.path.lexists(path):
            raise ConfigError(f"{option}: {path} exists already: choose another name, or allow it with --overwrite")


def file_stem(text: str) -> str:
    """A name for a file or folder from any text: its small letters and digits, joined by underscores.

    >>> file_stem("Windows(4), plain")
    'windows_4_plain'
    """
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def unfinished(path: Path) -> Path:
    """Where a file is written before it is put in its place: beside it, under a name that nobody else takes.

    It is drawn: processes have the same number in several containers, which may share a folder, and so have threads.

    >>> unfinished(Path("a/model.onnx")).suffix
    '.onnx'
    """
    return path.with_name(f".{file_stem(path.stem)[:100]}.{secrets.token_hex(6)}.part{path.suffix}")


def replace_atomically(temporary: str | Path, final: str | Path) -> None:
    """Put a finished file in its place: an interruption leaves the old file or the new one, never a part."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, final)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write a file that is put in its place at the end; if the work breaks off, nothing is left of it."""
    temporary = unfinished(path)
    try:
        yield temporary
        replace_atomically(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file under a temporary name beside its place, then rename it.

    >>> file = Path(tempfile.mkdtemp()) / "note.txt"
    >>> write_atomically(file, "done")
    >>> file.read_text(), len(list(file.parent.iterdir()))
    ('done', 1)
    """
    with written_whole(path) as temporary:
        temporary.write_text(text)
