"""Reading checkpoint files: weights only, and no code of the file is run."""

from __future__ import annotations

import argparse
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vssm.files import FileError
from vssm.models._checkpoint.archive import check_archive, is_safetensors

# Where training checkpoints hold their weights, in order of preference. A family whose authors evaluate the averaged
# weights has another order.
WEIGHTS_UNDER = ("model", "state_dict", "model_ema")
# Prefixes of wrappers: distributed data parallel, torch.compile, and the mm family's classifiers and detectors.
_PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")
# What stands beside a backbone and has no prefix: the classifiers of mmpretrain's models, and Mamba2D's with its norm.
_BESIDE = ("head.", "norm.")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit the model. Nothing was loaded."""


# Official files hold the settings of the run beside the weights: Vim's an argparse.Namespace, VMamba's a yacs CfgNode,
# which is read as an OrderedDict. Both are plain data.
_HARMLESS = [argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]


class _Ignored:
    """Takes the place of an object that is not needed: takes any arguments and state, stores and calls nothing."""

    def __new__(cls, *_: object) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        """Stores nothing."""

    def __setstate__(self, state: object) -> None:
        """Stores nothing."""


# The official detectors and segmentors are mmengine's checkpoints: logged values as NumPy arrays, in objects that name
# functions by getattr, which is not called here.
_IGNORED = [
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "_codecs.encode",
]


def read_checkpoint(path: str | Path, weights_under: Sequence[str] = WEIGHTS_UNDER) -> dict[str, Tensor]:
    """The weights in a file, by the names they have there without wrappers' prefixes.

    Args:
        path: a .pth file, or one of safetensors; what it holds decides, not its ending.
        weights_under: where the file holds more than weights, they are taken from under the first of these keys that
            is present.

    Raises:
        CheckpointError: the file cannot be read, or holds no weights.
    """
    return unwrap(read_file(path), str(path), weights_under)


def read_file(path: str | Path) -> object:
    """All that a file holds, on the CPU, without running any code that may be in it.

    Raises:
        CheckpointError: no such file, damaged, or with anything but tensors and plain values.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        check_archive(path)
        if is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([*_HARMLESS, *((_Ignored, name) for name in _IGNORED)]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileError as error:
        raise CheckpointError(f"{path} was not loaded: {error}") from error
    except Exception as error:  # a damaged file can raise anything
        refused = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused:
            raise CheckpointError(
                f"{path} was not loaded: it holds Python objects ({refused[1]}), which could run code; expected "
                f"weights only. If you trust the file, save its weights alone as a dict of tensors"
            ) from error
        raise CheckpointError(
            f"{path} was not loaded: it is damaged, incomplete or no checkpoint at all ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    """What went wrong, without torch's advice to load the file unsafely."""
    lines = str(error).rsplit("WeightsUnpickler error: ", 1)[-1].strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def unwrap(checkpoint: object, source: str, weights_under: Sequence[str] = WEIGHTS_UNDER) -> dict[str, Tensor]:
    """The weights inside a training checkpoint, without wrappers' prefixes; arguments as of `weights_in`."""
    state = weights_in(checkpoint, source, weights_under)
    while prefix := next((p for p in _PREFIXES for name in state if name.startswith(p)), None):
        kept = (prefix, *_BESIDE)
        state = merged((name.removeprefix(prefix), value) for name, value in state.items() if name.startswith(kept))
    return state


def merged(weights: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Weights by their names, of which some may come twice with the same values, as tied weights do.

    Raises:
        CheckpointError: a name with two values; which of them counted would be a matter of their order.
    """
    state: dict[str, Tensor] = {}
    for name, value in weights:
        other = state.setdefault(name, value)
        alike = (other.shape, other.dtype) == (value.shape, value.dtype)
        if other is not value and not (alike and torch.equal(other, value)):
            raise CheckpointError(
                f"the checkpoint has two values of {name}, under names that mean the same (with and without a "
                "wrapper's prefix, in the official layout and ours, or tied): remove one of them; nothing was loaded"
            )
    return state


def weights_in(checkpoint: object, source: str, weights_under: Sequence[str] = WEIGHTS_UNDER) -> dict[str, Tensor]:
    """The weights inside a training checkpoint, by the names they have there.

    Args:
        checkpoint: what the file holds.
        source: the file, for the error.
        weights_under: weights are taken from under the first of these keys that is present, else all is weights.

    Raises:
        CheckpointError: there are no weights.
    """
    for key in weights_under:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    weights = isinstance(checkpoint, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in checkpoint.items()
    )
    if not weights or not checkpoint:
        found = list(checkpoint)[:5] if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise CheckpointError(
            f"{source} holds no weights: expected a dict of tensors, or one under {', '.join(weights_under)}; "
            f"found {found}"
        )
    return dict(checkpoint)
