"""A classifier with its evaluation transform and the names of its classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from torch import Tensor, nn

from vssm import models
from vssm.data import build_transform
from vssm.data.transforms import Transform
from vssm.errors import ConfigError
from vssm.inference.create import create_model
from vssm.inference.description import Description, describe
from vssm.inference.saved import is_training, load_weights, read_checkpoint
from vssm.models import CheckpointError


@dataclass
class Predictor:
    """Predicts the classes of an image.

    Args:
        model: a timm model.
        transform: from an RGB image to (channels, height, width).
        labels: names of the classes.
        arguments: of `vssm.inference.create_model`, for the same model with initial weights.
    """

    model: nn.Module
    transform: Transform
    labels: Sequence[str]
    arguments: Mapping[str, object]

    def __call__(self, image: Image.Image, count: int = 5) -> list[tuple[str, float]]:
        """The best classes of an image with their probabilities, best first."""
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            logits = self.model.eval()(self.transform(image)[None].to(device))[0]
        best = logits.float().softmax(-1).topk(min(count, len(logits)))
        return [(self.labels[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def load_predictor(name: str | None, checkpoint: Path | None = None, labels: Path | None = None) -> Predictor:
    """Build a classifier with its weights.

    Args:
        name: a timm model; None for a checkpoint of tools/train.py.
        checkpoint: written by tools/train.py, or weights in the model's official layout; None downloads the published
            weights.
        labels: a file with the name of a class on each line; None for the checkpoint's names, or ImageNet's for a
            model with 1000 classes.

    Raises:
        ConfigError, CheckpointError: unknown name, weights that do not fit or cannot be downloaded, a wrong number of
            labels.
    """
    return predictor_of(read_checkpoint(checkpoint) if checkpoint else {}, name, checkpoint, labels)


def predictor_of(saved: dict, name: str | None, checkpoint: Path | None, labels: Path | None = None) -> Predictor:
    """The same with a checkpoint that is read already: `saved`, empty for none."""
    described = describe(saved, checkpoint) if is_training(saved) else None
    arguments = model_arguments(described, name)
    names = read_labels(labels)
    if described is not None:
        weights = weights_of_backbone(saved.get("state_dict"), checkpoint)
        model = described.build_model(lambda: create_model(**arguments), weights)
        models.check_fits(weights, model.state_dict(), str(checkpoint), type(model).__name__)
        model.load_state_dict(weights)
        transform = described.build(lambda: build_transform(described.transform))
        names = names or described.classes
    else:
        model = _published(name) if checkpoint is None else create_model(name)
        if checkpoint is not None:
            load_weights(model, checkpoint)
        transform = create_transform(**resolve_data_config({}, model=model))
    labels = class_names(model.num_classes, names)
    return Predictor(model.to("cuda" if torch.cuda.is_available() else "cpu"), transform, labels, arguments)


def model_arguments(described: Description | None, name: str | None) -> dict:
    """The arguments of `create_model` for a checkpoint's classifier, as it was trained, or for the named model.

    Args:
        described: what the checkpoint says of its model; None where there is no checkpoint, or weights alone.
        name: a timm model; None where the checkpoint says it.

    Raises:
        ConfigError: no name where the checkpoint does not say, or another one than it says.
        CheckpointError: the checkpoint is of a detector or segmentor.
    """
    if described is None:
        if name is None:
            raise ConfigError("which model? Name it with --model, or give a checkpoint of tools/train.py")
        return {"model_name": name}
    if described.backbone is None:
        raise CheckpointError(f"{described.source} is a checkpoint of a detector or segmentor; expected a classifier's")
    if name not in (None, described.backbone["model_name"]):
        raise ConfigError(f"{described.source} is a checkpoint of {described.backbone['model_name']}, not of {name}")
    return described.backbone


def weights_of_backbone(state: object, path: str | Path) -> dict[str, Tensor]:
    """A classifier's part of a training's weights, by the names that the timm model has for them."""
    prefix = "backbone."
    weights = models.weights_in(state, str(path))
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _published(name: str) -> nn.Module:
    create_model(name, pretrained=False)
    try:
        return timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"the published weights of {name} could not be downloaded ({str(error).splitlines()[0]}); "
            "give a file with --checkpoint"
        ) from error


def class_names(count: int, names: Sequence[str] | None) -> Sequence[str]:
    """The names of a model's classes: those given, ImageNet's for 1000 classes, or numbers.

    Raises:
        ConfigError: another number of names than of classes.
    """
    if names is None and count == 1000:
        names = ImageNetInfo().label_descriptions()
    elif names is None:
        names = [f"class {index}" for index in range(count)]
    if len(names) != count:
        raise ConfigError(f"the model has {count} classes, but there are {len(names)} labels")
    return names


def read_labels(path: Path | None) -> list[str] | None:
    """The lines of a file of labels; None where none is given."""
    if path is not None and not path.is_file():
        raise ConfigError(f"there is no file of labels {path}")
    return None if path is None else path.read_text().splitlines()
