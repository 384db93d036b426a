"""Weights into a model: all of them or none, and one sentence where they do not fit."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Protocol

import torch
from timm.models import adapt_input_conv
from torch import Tensor

from vssm.models._checkpoint.read import CheckpointError, read_checkpoint
from vssm.models._checkpoint.renaming import Renaming

_logger = logging.getLogger(__name__)


class Loadable(Protocol):
    """What loading asks of a model; `vssm.models.Backbone` has it."""

    renaming: Renaming
    weights_under: Sequence[str]
    weights_notice: str
    first_conv: str
    classifier: str | tuple[str, ...]

    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> object: ...
    def resize_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]: ...


def load_checkpoint(
    model: Loadable,
    path: str | Path,
    adapt: bool = False,
    removed: Set[str] = frozenset(),
    added: Set[str] = frozenset(),
) -> None:
    """Load all of a checkpoint's weights into a model, or raise and leave the model as it is.

    Reads our own files, those of the official repositories, and those of mmengine, with `weights_only`: no code in
    the file is run. Weights are taken from under the first of the model's `weights_under` that is present, as a rule
    "model", "state_dict" or "model_ema".

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


def our_layout(state: Mapping[str, Tensor], model: Loadable, removed: Set[str] = frozenset()) -> dict[str, Tensor]:
    """Weights under our names and in our shapes, from the official layout or ours; unknown names stay as they are.

    Where official ones come with a notice, such as a licence, a UserWarning says it.
    """
    shapes: dict[str, torch.Size] = {name: value.shape for name, value in model.state_dict().items()}
    taken_away = model.renaming.read(state, shapes | dict.fromkeys(removed))
    if model.weights_notice and taken_away.keys() != state.keys():
        warnings.warn(model.weights_notice, stacklevel=1)  # the same place each time, so that Python says it once
    return model.resize_weights(taken_away)


def fit(
    state: Mapping[str, Tensor],
    model: Loadable,
    source: str,
    adapt: bool,
    removed: Set[str] = frozenset(),
    added: Set[str] = frozenset(),
) -> dict[str, Tensor]:
    """A state dict that the model can load as it stands; arguments as of `load_checkpoint`.

    Raises:
        CheckpointError: the weights do not fit.
    """
    expected = model.state_dict()
    state = {name: value for name, value in our_layout(state, model, removed).items() if name not in removed}
    if added.isdisjoint(state):
        state.update({name: expected[name] for name in added})
    if adapt:
        state = _adapt(state, expected, model)
    check_fits(state, expected, source, type(model).__name__)
    return state


def check_fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str, model: str) -> None:
    """Refuse weights that a model would take only in part, or that hold no numbers.

    Args:
        state: the weights.
        expected: the model's own state dict.
        source: where the weights come from, for the error.
        model: what it is called in the error.

    Raises:
        CheckpointError: names the missing, unexpected and misshapen keys, whole numbers in the place of others, and
            those with NaN or infinite values in the model's precision.
    """
    problems = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "misshapen": [
            f"{name}: {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}"
            for name in expected
            if name in state and state[name].shape != expected[name].shape
        ],
        "whole numbers, as in quantized weights": [
            f"{name}: {_named(state[name].dtype)}, expected {_named(value.dtype)}"
            for name, value in expected.items()
            if name in state and value.is_floating_point() and _is_whole(state[name])
        ],
    }
    if any(problems.values()):
        told = "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in problems.items() if names)
        hint = _directions_hint(state, expected)
        raise CheckpointError(f"{source} does not fit {model}, nothing was loaded: {told}{hint}")
    broken = [
        name if value.dtype == expected[name].dtype else f"{name} as {_named(expected[name].dtype)}"
        for name, value in state.items()
        if not _is_finite(value, expected[name].dtype)
    ]
    if broken:
        raise CheckpointError(
            f"{source} holds NaN, infinite or complex values, nothing was loaded: {len(broken)} of {len(state)} "
            f"weights ({_some(broken)}). Its training diverged, or the file is damaged: take an earlier checkpoint"
        )


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_whole(value: Tensor) -> bool:
    return not value.is_floating_point() and not value.is_complex()


def _is_finite(value: Tensor, dtype: torch.dtype) -> bool:
    """Whether all values are finite in the model's precision, which may reach less far than the file's."""
    if value.is_meta:  # an outline without values
        return True
    if value.is_floating_point():
        return bool(torch.isfinite(value.to(dtype if dtype.is_floating_point else torch.float32)).all())
    return not value.is_complex()


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


def _some(names: list[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _adapt(state: dict[str, Tensor], expected: Mapping[str, Tensor], model: Loadable) -> dict[str, Tensor]:
    """Weights for the model's number of classes and of input channels, as timm adapts them."""
    state = dict(state)
    stem = f"{model.first_conv}.weight"
    if _same_dims(stem, state, expected) and state[stem].shape[1] != expected[stem].shape[1]:
        state[stem] = adapt_input_conv(expected[stem].shape[1], state[stem], base_chans=state[stem].shape[1])
    for classifier in (model.classifier,) if isinstance(model.classifier, str) else model.classifier:
        state = _adapt_classifier(state, expected, classifier)
    return state


def _same_dims(name: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return name in state and state[name].dim() == expected[name].dim()


def _adapt_classifier(state: dict[str, Tensor], expected: Mapping[str, Tensor], classifier: str) -> dict[str, Tensor]:
    weight, bias = f"{classifier}.weight", f"{classifier}.bias"
    if weight not in expected:
        return {name: value for name, value in state.items() if name not in (weight, bias)}
    if _same_dims(weight, state, expected) and state[weight].shape != expected[weight].shape:
        _logger.warning(
            "the checkpoint has %d classes and the model %d: the classifier keeps its initial weights",
            state[weight].shape[0],
            expected[weight].shape[0],
        )
        state.update({name: expected[name] for name in (weight, bias)})
    return state
