"""Checkpoints: finds the latest, reads it, and loads weights. Runs no code of the file."""

from contextlib import suppress
from pathlib import Path

import numpy
from torch import nn

from vssm import models
from vssm.files import check_regular
from vssm.models import CheckpointError

# The name of the newest checkpoint stands in NOTE; a training that a signal stopped has written INTERRUPTED.
NOTE = "last_checkpoint"
INTERRUPTED = "interrupted.pth"
# No note that a training writes is longer (bytes).
LONGEST_NOTE = 10_000


def latest_checkpoint(work_dir: str | Path) -> Path | None:
    """The newest checkpoint of a training, whole or not; None if there is none."""
    return next(iter(checkpoints_of(work_dir)), None)


def checkpoints_of(work_dir: str | Path) -> list[Path]:
    """The checkpoints from which a training can resume, the newest first.

    Args:
        work_dir: where a training wrote its checkpoints.

    Returns:
        The file that ``last_checkpoint`` names, if that note can be read; then the ``epoch_*``, ``iter_*`` and
        interrupted ones from the newest to the oldest.
    """
    work_dir = Path(work_dir)
    # Only the name counts: the directory may have been moved.
    named = Path(read_note(work_dir / NOTE)).name
    dated = []
    for path in work_dir.glob("*.pth"):
        if path.name in (named, INTERRUPTED) or path.name.startswith(("epoch_", "iter_")):
            with suppress(FileNotFoundError):  # the training that wrote it has just removed it, or a link to nothing
                dated.append((path.name == named, path.stat().st_mtime, path))
    return [path for *_, path in sorted(dated, reverse=True)]


def read_note(path: Path) -> str:
    """The text of a small file of bookkeeping; empty if it is missing, damaged, or no regular file."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            return file.read(LONGEST_NOTE).decode().strip()
    except (OSError, ValueError):
        return ""


def intact_training(work_dir: str | Path, besides: Path | None = None) -> Path | None:
    """The newest checkpoint in a directory, other than `besides`, that a training can go on from."""
    for path in checkpoints_of(work_dir):
        if besides is None or path.resolve() != besides.resolve():
            try:
                checkpoint = read_checkpoint(path)
            except CheckpointError:
                continue
            if is_training(checkpoint) and "optimizer" in checkpoint:
                return path
    return None


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint without running code that it may contain.

    Args:
        path: a file that `PlainCheckpointHook` wrote, or a file of tensors and plain values.

    Returns:
        The dict in the file, on the CPU.

    Raises:
        CheckpointError: no such file, truncated, not a checkpoint, or with anything but tensors and plain values.
    """
    checkpoint = models.read_file(path)
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}; expected a dict with the weights")
    return checkpoint


def is_training(checkpoint: dict) -> bool:
    """Whether a checkpoint was saved by `PlainCheckpointHook`, with all that a training needs to resume."""
    meta = checkpoint.get("meta")
    return "message_hub" in checkpoint and isinstance(meta, dict) and "backbone" in meta


def classes_of(checkpoint: dict) -> tuple[str, ...] | None:
    """The names of the classes that a training learnt, in the order of its outputs; None where they are not known.

    >>> classes_of({"meta": {"classes": ["ant", "bee"]}})
    ('ant', 'bee')
    """
    meta = checkpoint.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    described = meta.get("dataset_meta")
    names = meta.get("classes") or (described.get("classes") if isinstance(described, dict) else None)
    texts = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(names) if texts and names else None


def to_plain(value: object) -> object:
    """Convert ConfigDict, NumPy's numbers and the like to plain Python values, which every reader accepts."""
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_plain(item) for item in value)
    return value.tolist() if isinstance(value, numpy.generic | numpy.ndarray) else value


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a file of weights, in the official layout of the model or in timm's, all of them or none.

    Raises:
        CheckpointError: the file cannot be read, or does not fit.
    """
    if isinstance(model, models.Backbone):
        models.load_checkpoint(model, path)
    else:
        weights = models.read_checkpoint(path)
        models.check_fits(weights, model.state_dict(), str(path), type(model).__name__)
        model.load_state_dict(weights)
