"""Where compiled kernels are stored: in a folder that only its user can write, and checked before they are loaded.

A shared library is code: whoever can write one runs code as everyone who loads it, and a damaged one kills Python.
SECURITY.md states the rules.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

_SCRATCH = "vssm-compile-"
_LOCK = "compiling.lock"


@lru_cache
def warn_once(message: str) -> None:
    """Log a warning once per process."""
    logger.warning(message)


def cache_path() -> Path:
    """$VSSM_CACHE, else $XDG_CACHE_HOME/vssm or ~/.cache/vssm. Raises OSError where that is no absolute path."""
    if sys.platform == "win32":
        raise OSError("the C kernels are built for Linux and macOS only")
    if chosen := os.environ.get("VSSM_CACHE"):
        if not os.path.isabs(chosen):
            raise OSError(f"VSSM_CACHE={chosen} depends on the working directory; write the absolute path")
        return Path(chosen)
    caches = os.environ.get("XDG_CACHE_HOME", "")  # its specification says to ignore relative paths
    if not os.path.isabs(caches):
        caches = os.path.expanduser("~/.cache")
    if not os.path.isabs(caches):
        raise OSError(f"user {os.geteuid()} has no home folder")
    return Path(caches) / "vssm"


@contextmanager
def open_cache() -> Iterator[Path]:
    """The folder of `cache_path`, made where it is missing. Raises OSError where it cannot be trusted or made."""
    path = cache_path()
    _make_private(path)
    with private_folder(path) as folder:
        yield folder


@contextmanager
def private_folder(path: Path) -> Iterator[Path]:
    """A path to the folder that leads to the same folder even if someone renames one above it.

    The folder is opened, then checked, then reached through its descriptor (without /proc, as on macOS: by its path).
    Raises PermissionError where another user owns it, or group or others can write it.
    """
    if path.is_symlink() and (owner := path.lstat().st_uid) != os.geteuid():
        raise PermissionError(f"{path} is a link that user {owner} made")
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if (reason := _why_not_private(os.fstat(descriptor))) is not None:
            raise PermissionError(f"{path} is not private: {reason}")
        by_descriptor = Path(f"/proc/self/fd/{descriptor}")
        yield by_descriptor if by_descriptor.is_dir() else path
    finally:
        os.close(descriptor)


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """A private folder in `parent`, else among the system's temporary files; removed at the end.

    Those that killed processes left are removed first. A process locks its own, and the system releases the lock
    however the process ends.
    """
    parent = parent or Path(tempfile.gettempdir())
    _remove_abandoned(parent)
    temporary = tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=parent, ignore_cleanup_errors=True)
    with temporary as path, private_folder(Path(path)) as folder, (folder / "new.lock").open("w") as lock:
        with suppress(OSError):  # no locks on this file system: without the file nobody removes the folder
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "new.lock").rename(folder / _LOCK)  # locked before others look for it
        yield folder


def stored_libraries(folder: Path, name: str) -> Iterator[Path]:
    """The libraries stored as `name` that are intact and this user's alone. Others are removed, with a warning."""
    for path in sorted(folder.glob(f"{name}-*.so")):
        try:
            contents = _read_private(path)
        except OSError as error:
            reason = str(error)
        else:
            if path.name == _file_name(name, contents):
                yield path
                continue
            reason = f"its {len(contents)} bytes are not those that were stored"
        logger.warning("compiling a stored kernel again, %s: %s", path.name, reason)
        with suppress(OSError):
            path.unlink()


def store(library: Path, folder: Path, name: str) -> Path:
    """Copy a library into the folder in one step: other processes see all of it or nothing. Returns the copy."""
    contents = library.read_bytes()
    target = folder / _file_name(name, contents)
    with scratch_folder(folder) as scratch:
        copy = scratch / target.name
        copy.write_bytes(contents)
        copy.chmod(0o600)
        copy.replace(target)
    return target


def _file_name(name: str, contents: bytes) -> str:
    """The name ends in a hash of the contents: a file can be checked by itself, and several fit side by side."""
    return f"{name}-{hashlib.sha256(contents).hexdigest()[:16]}.so"


def _read_private(path: Path) -> bytes:
    """The contents of a regular file that only this user can write. Raises OSError for any other."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # opening a pipe would wait for a writer
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        if (reason := _why_not_private(status)) is not None:
            raise PermissionError(reason)
        return file.read()


def _why_not_private(status: os.stat_result) -> str | None:
    """Who else can write a file or folder of this status; None where only this process's user can."""
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}, this process runs as user {os.geteuid()}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others can write it (mode {stat.S_IMODE(status.st_mode):o}); forbid that with chmod go-w"
    return None


def _make_private(path: Path) -> None:
    """Like mkdir -p, but every new folder has mode 0700, whatever the umask."""
    if not path.parent.exists():
        _make_private(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


def _remove_abandoned(parent: Path) -> None:
    for path in parent.glob(f"{_SCRATCH}*"):
        # OSError: another user's folder, one not locked yet, or one whose process is alive.
        with suppress(OSError), private_folder(path) as folder, (folder / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
