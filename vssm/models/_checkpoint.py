"""Reading checkpoints: weights only, all of them or none, and one sentence where a file does not fit."""

from __future__ import annotations

import argparse
import logging
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.models import adapt_input_conv, resolve_pretrained_cfg
from torch import Tensor

from vssm.files import FileError
from vssm.models._archive import check_archive

if TYPE_CHECKING:
    from vssm.models._base import Backbone

_logger = logging.getLogger(__name__)

# Where training checkpoints keep their weights. A family whose authors evaluate the average has another order.
WEIGHTS_UNDER = ("model", "state_dict", "model_ema")
# Wrappers' prefixes: distributed data parallel, torch.compile, and the mm family's classifiers and detectors.
_PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit the model. Nothing was loaded."""


# Beside the weights the official files hold the run's settings: Vim's an argparse.Namespace, VMamba's a yacs CfgNode,
# for which an OrderedDict stands in. Both are plain data.
_HARMLESS = [argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]


class _Ignored:
    """Stands in a file for what is not needed: takes any arguments and any state, and keeps and calls nothing."""

    def __new__(cls, *_: object) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        """Nothing is kept."""

    def __setstate__(self, state: object) -> None:
        """Nothing is kept."""


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


def load_checkpoint(
    model: Backbone,
    path: str | Path,
    adapt: bool = False,
    removed: Set[str] = frozenset(),
    added: Set[str] = frozenset(),
) -> None:
    """Load all of a checkpoint's weights into a model, or raise and leave the model as it is.

    Reads our own files, the official repositories' ones, and those of mmengine, with `weights_only`: no code in the
    file is run. Weights are taken from under the first of the model's `weights_under` that is there, as a rule "model",
    "state_dict" or "model_ema".

    Args:
        model: one of this package's models.
        path: a .pth file, or .safetensors.
        adapt: allow another number of classes (the classifier keeps its initial weights) and another number of input
            channels (the stem's weights are summed or repeated), as timm's `pretrained=True` does.
        removed: names of weights that the model had before parts of it were taken away; those in the file are left out.
        added: names of weights that were put into the model after it was built; where the file has none of them, they
            keep their initial values.

    Raises:
        CheckpointError: the file cannot be read, holds more than data, or its weights do not fit.

    >>> import tempfile, timm
    >>> model = timm.create_model("vim_tiny", depth=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"model": model.state_dict()}, f"{folder}/vim.pth")
    ...     load_checkpoint(model, f"{folder}/vim.pth")
    """
    state = read_checkpoint(path, model.weights_under)
    model.load_state_dict(fit(state, model, source=str(path), adapt=adapt, removed=removed, added=added))


def read_checkpoint(path: str | Path, weights_under: Sequence[str] = WEIGHTS_UNDER) -> dict[str, Tensor]:
    """The weights in a file, by the names they have there without wrappers' prefixes. Raises CheckpointError.

    Where the file holds more than weights, they are taken from under the first of `weights_under` that is there.
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
        if path.suffix == ".safetensors":
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
    """The weights inside a training checkpoint, without wrappers' prefixes."""
    state = weights_in(checkpoint, source, weights_under)
    while inside := [(prefix, name) for prefix in _PREFIXES for name in state if name.startswith(prefix)]:
        prefix = inside[0][0]
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return state


def weights_in(checkpoint: object, source: str, weights_under: Sequence[str] = WEIGHTS_UNDER) -> dict[str, Tensor]:
    """The weights inside a training checkpoint, by the names they have there.

    Args:
        checkpoint: what the file holds.
        source: the file, for the error.
        weights_under: they are taken from under the first of these keys that is there, else all is taken for weights.

    Raises:
        CheckpointError: there are no weights.
    """
    for key in weights_under:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    weights = isinstance(checkpoint, Mapping) and all(isinstance(value, Tensor) for value in checkpoint.values())
    if not weights or not checkpoint:
        found = list(checkpoint)[:5] if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise CheckpointError(
            f"{source} holds no weights: expected a dict of tensors, or one under {', '.join(weights_under)}; "
            f"found {found}"
        )
    return dict(checkpoint)


def fit(
    state: dict[str, Tensor],
    model: Backbone,
    source: str,
    adapt: bool,
    removed: Set[str] = frozenset(),
    added: Set[str] = frozenset(),
) -> dict[str, Tensor]:
    """A state dict under our names that the model can load as it stands. Raises CheckpointError where there is none.

    The arguments are those of `load_checkpoint`.
    """
    expected = model.state_dict()
    state = {name: value for name, value in model.convert_checkpoint(state).items() if name not in removed}
    if added.isdisjoint(state):
        state.update({name: expected[name] for name in added})
    if adapt:
        state = _adapt(state, expected, model)
    check_fits(state, expected, source, type(model).__name__)
    return state


def check_fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str, model: str) -> None:
    """Refuse weights that a model would take only in part.

    Args:
        state: the weights.
        expected: the model's own state dict.
        source: where the weights come from, for the error.
        model: what it is called in the error.

    Raises:
        CheckpointError: names the missing, unexpected and misshapen keys.
    """
    problems = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "misshapen": [
            f"{name}: {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}"
            for name in expected
            if name in state and state[name].shape != expected[name].shape
        ],
    }
    if any(problems.values()):
        told = "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in problems.items() if names)
        hint = _directions_hint(state, expected)
        raise CheckpointError(f"{source} does not fit {model}, nothing was loaded: {told}{hint}")


def _directions_hint(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What to do where the weights are those of a scan order with another number of directions."""
    for name, value in expected.items():
        found = state.get(name)
        if not name.endswith("scan.x_proj") or found is None or found.shape[1:] != value.shape[1:]:
            continue
        if found.shape[0] != value.shape[0]:
            return (
                f". Its scans have {found.shape[0]} directions and the model's {value.shape[0]}: choose a scan_order "
                f"with {found.shape[0]}, or train from the start"
            )
    return ""


def check_obtainable(variant: str, pretrained_cfg: Any, overlay: dict[str, Any]) -> None:
    """Some authors' weights cannot be fetched by a program: CheckpointError says where they are, and what to do."""
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, overlay)
    if not cfg.has_weights and not cfg.state_dict:
        where = cfg.notes[0] if cfg.notes else cfg.origin_url
        raise CheckpointError(
            f"the weights of {variant} cannot be downloaded by a program: get the file from {where} with a browser, "
            f'then give its path: timm.create_model("{variant}", pretrained=True, pretrained_cfg_overlay='
            f'dict(file="..."))'
        )


def _some(names: list[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _adapt(state: dict[str, Tensor], expected: dict[str, Tensor], model: Backbone) -> dict[str, Tensor]:
    """Follow the model's number of classes and of input channels, as timm does."""
    state = dict(state)
    stem = f"{model.first_conv}.weight"
    if stem in state and state[stem].shape[1] != expected[stem].shape[1]:
        state[stem] = adapt_input_conv(expected[stem].shape[1], state[stem], base_chans=state[stem].shape[1])
    head = f"{model.classifier}.weight", f"{model.classifier}.bias"
    if head[0] not in expected:
        return {name: value for name, value in state.items() if name not in head}
    if head[0] in state and state[head[0]].shape != expected[head[0]].shape:
        _logger.warning(
            "the checkpoint has %d classes and the model %d: the classifier keeps its initial weights",
            state[head[0]].shape[0],
            expected[head[0]].shape[0],
        )
        state.update({name: expected[name] for name in head})
    return state
