"""Loads a file of weights into a classifier, a detector or a segmentor, all of them or none."""

from pathlib import Path

from torch import Tensor, nn

from vssm import models
from vssm.inference import saved
from vssm.mm.tasks.backbone import VSSMBackbone, rename_official
from vssm.mm.tasks.classifier import ImageClassifier
from vssm.models import CheckpointError


def classes_of_heads(model: nn.Module) -> dict[str, int]:
    """The number of classes of each head of a detector or segmentor that predicts the classes of the data.

    Region proposal heads are left out: they have one class, object.
    """
    parts = {name: part for name, part in model.named_modules() if "head" in name and hasattr(part, "num_classes")}
    return {name: part.num_classes for name, part in parts.items() if "rpn" not in name and "loss" not in name}


def load_training(model: nn.Module, checkpoint: dict, path: str | Path) -> None:
    """Load the weights of a training's checkpoint, all of them or none.

    Args:
        model: an `ImageClassifier`, a detector or a segmentor.
        checkpoint: the content of the file.
        path: the file, for errors.

    Raises:
        CheckpointError: names the parts, or the keys, that differ.
    """
    _load(model, models.weights_in(checkpoint.get("state_dict"), str(path)), path)


def trained_weights(model: nn.Module, checkpoint: dict, path: str | Path) -> dict[str, Tensor] | None:
    """The weights that were trained, of a checkpoint that has their averages in their place; None of another one.

    mmengine's EMAHook exchanges the two when a training goes on, and would load them in part, or not finite.

    Raises:
        CheckpointError: names the keys of either that do not fit.
    """
    if "ema_state_dict" not in checkpoint:
        return None
    saved = models.weights_in(checkpoint["ema_state_dict"], f"ema_state_dict of {path}")
    trained = {name.removeprefix("module."): each for name, each in saved.items() if name.startswith("module.")}
    for part in (trained, models.weights_in(checkpoint.get("state_dict"), str(path))):
        models.check_fits(part, model.state_dict(), str(path), type(model).__name__)
    return trained


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a file with weights only, in our layout or the official one, all of them or none.

    For a classifier the weights of its timm model; for a detector or segmentor those of the whole model.

    Raises:
        CheckpointError: the file cannot be read, or does not fit.
    """
    if isinstance(model, ImageClassifier):
        saved.load_weights(model.backbone, path)
        return
    weights = models.weights_in(models.read_file(path), str(path))
    if isinstance(model.backbone, VSSMBackbone):
        head = getattr(model, "decode_head", None)
        if hasattr(head, "our_layout"):  # official U-shaped networks do not tell encoder and decoder apart
            weights = head.our_layout(weights, model)
        rename_official(model.backbone, weights, "backbone.")
    _load(model, weights, path)


def _load(model: nn.Module, weights: dict[str, Tensor], path: str | Path) -> None:
    check_parts(model, weights, path)
    models.check_fits(weights, model.state_dict(), str(path), type(model).__name__)
    model.load_state_dict(weights)


def check_parts(model: nn.Module, weights: dict[str, Tensor], path: str | Path) -> None:
    """Report a checkpoint of another head by the names of its parts rather than by hundreds of keys.

    Raises:
        CheckpointError: names the parts of both.
    """
    found, expected = ({name.partition(".")[0] for name in names} for names in (weights, model.state_dict()))
    if found != expected:
        raise CheckpointError(
            f"{path} is a checkpoint of another model: it holds {', '.join(sorted(found))}, and this "
            f"{type(model).__name__} has {', '.join(sorted(expected))}; nothing was loaded"
        )
