"""Checkpoints: finds the latest, reads it, and loads weights. Runs no code of the file."""

from pathlib import Path

import numpy
from torch import nn

from vssm import models
from vssm.models import CheckpointError


def latest_checkpoint(work_dir: str | Path) -> Path | None:
    """The checkpoint from which a training resumes.

    Args:
        work_dir: where a training wrote its checkpoints.

    Returns:
        The file that ``last_checkpoint`` names; if that note is missing or truncated, the newest ``epoch_*`` or
        ``iter_*`` file; None if there is none.
    """
    work_dir = Path(work_dir)
    note = work_dir / "last_checkpoint"
    if note.is_file():
        # Only the name counts: the directory may have been moved.
        named = work_dir / Path(note.read_text(errors="replace").strip()).name
        if named.is_file():
            return named
    files = [*work_dir.glob("epoch_*.pth"), *work_dir.glob("iter_*.pth")]
    return max(files, key=lambda path: path.stat().st_mtime, default=None)


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
