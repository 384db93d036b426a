"""Faults of the machine as one sentence: memory, processes, disks and files that are gone."""

import errno
import re
from pathlib import Path

import torch

_KILLED = (
    "a data worker was killed{}, most often because the memory ran out (the kernel's log says so: dmesg): use fewer "
    "train_dataloader.num_workers, or a smaller batch_size"
)
# By the text of the error, as PyTorch and Python raise many kinds with the same class. The first that fits counts.
SENTENCES = {
    r"(?:insufficient|out of) shared memory|unable to (open|allocate|resize) shared memory|/torch_\d+": (
        "the shared memory (/dev/shm) is full: enlarge it (docker run --shm-size=8g), or set "
        "train_dataloader.num_workers=0"
    ),
    r"DataLoader worker \(pid(?:\(s\))? ?([\d, ]+)\) (?:is killed by signal|exited unexpectedly)": (
        _KILLED.format(" (process {0})")
    ),
    # Of Python's sockets, over which workers hand their tensors over; those of torch.distributed raise other classes.
    r"ConnectionResetError": _KILLED.format(""),
    r"CUDA out of memory|CUDA error: out of memory": (
        "the memory of the GPU is full: use a smaller train_dataloader.batch_size (with accumulative_counts for the "
        "same total), --amp bf16, smaller images, or --compile off, which keeps no memory for CUDA graphs"
    ),
    r"can't allocate memory|Cannot allocate memory|MemoryError|bad_alloc|unable to mmap|can't start new thread": (
        "the memory is full, or a limit on it is reached (ulimit -v, a container's): use a smaller batch_size, or "
        "fewer num_workers"
    ),
    r"Too many open files|received 0 items of ancdata": (
        "too many files are open: raise the limit (ulimit -n 65536), or use fewer num_workers"
    ),
    r"Expected more than 1 value per channel when training": (
        "a norm has a single value: a batch norm in a batch of one image, such as the last one of an epoch (set "
        "train_dataloader.drop_last=True, or another batch_size), or a group norm with a channel a group on a map of "
        "one position (set fewer num_groups, or larger images)"
    ),
    r"The image size in a batch should be the same": (
        "the images of a batch to evaluate have several sizes, and a segmentor takes one: set batch_size=1 in "
        "val_dataloader and test_dataloader, or let their pipelines make all images of one size"
    ),
    r"FileNotFoundError: (.*) can not be found\.": "there is no file {0}, which an init_cfg in the config names",
    r"Parent directory (.*) does not exist": "the directory {0} is gone",
    r"Connection reset by peer|Connection closed by peer|DistBackendError|ProcessGroup.*(?:timeout|Timed out)": (
        "another process of this training ended or does not answer; its own output says why"
    ),
}
# Failures of the disk that a user can mend; any other OSError keeps its traceback.
DISK_ERRORS = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
    errno.ESTALE,
}


def explain(error: BaseException, work_dir: str | Path | None = None) -> str | None:
    """What happened and what to do, in one sentence; None for an error that is none of these faults.

    Args:
        error: as it was caught. Errors from data workers carry their traceback as text.
        work_dir: of the training, to tell its files from the data's.

    >>> explain(MemoryError())[:18]
    'the memory is full'
    """
    told = f"{type(error).__name__}: {error}"
    gone = _gone(error, told, work_dir)
    if gone:
        return gone
    if isinstance(error, AssertionError | RuntimeError | MemoryError | OSError | ValueError | torch.OutOfMemoryError):
        for pattern, sentence in SENTENCES.items():
            found = re.search(pattern, told)
            if found:
                return sentence.format(*(group.strip() for group in found.groups() if group))
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return f"{error.filename or 'writing'}: {error.strerror}"
    return None


def _gone(error: BaseException, told: str, work_dir: str | Path | None) -> str | None:
    """The sentence for a file or directory that is no longer there."""
    found = re.search(r"No such file or directory: '?([^'\n]+)'?", told)
    path = error.filename if isinstance(error, FileNotFoundError) and error.filename else found and found.group(1)
    if path is None:
        return None
    path = Path(str(path))
    if work_dir is not None and Path(work_dir).absolute() in path.absolute().parents and not Path(work_dir).is_dir():
        return f"the work directory {work_dir} is gone: it was moved or removed while the training wrote there"
    top = next((parent for parent in reversed(path.parents) if not parent.exists()), path)
    return f"{top} is gone or was never there: it was needed to open {path}" if top != path else f"{path} is not there"
