"""One training at a time in a work directory: two would mix their checkpoints and logs."""

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.dist import is_main_process

from vssm.errors import ConfigError

LOCK = ".training.lock"
_logger = logging.getLogger(__name__)


@contextmanager
def locked(work_dir: str | Path) -> Iterator[None]:
    """Hold the lock of a work directory in the main process of a training.

    The operating system holds it (POSIX record locks, which work on NFS too) and releases it when this process ends,
    however it ends, so the file that a killed training leaves behind locks nothing. Forked data workers do not inherit
    the lock. The file's text only says who has it.

    Raises:
        ConfigError: another process has the lock; names it.
    """
    if not is_main_process():
        yield
        return
    path = Path(work_dir) / LOCK
    with path.open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                # Some network disks have no locks.
                _logger.warning("%s: %s; make sure that no other training writes there", path, error.strerror)
                yield
                return
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            raise ConfigError(
                f"a training is running in {work_dir} ({holder}): wait for its end, stop it, or choose another "
                "directory with --work-dir"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield
        file.truncate(0)
