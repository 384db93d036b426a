"""Files: only regular ones are opened, and what is written is whole or absent."""

import os
import stat
import tempfile
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


def replace_atomically(temporary: str | Path, final: str | Path) -> None:
    """Put a finished file in its place: an interruption leaves the old file or the new one, never a part."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, final)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file under a temporary name beside its place, then rename it.

    >>> file = Path(tempfile.mkdtemp()) / "note.txt"
    >>> write_atomically(file, "done")
    >>> file.read_text(), len(list(file.parent.iterdir()))
    ('done', 1)
    """
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text)
    replace_atomically(temporary, path)
