"""A classifier with its evaluation transform and the names of its classes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from torch import Tensor, nn

from vssm import models
from vssm.data import DataError, build_transform
from vssm.data.classes import names_in
from vssm.data.transforms import Transform
from vssm.errors import ConfigError
from vssm.inference.create import create_model
from vssm.inference.description import Description, describe
from vssm.inference.saved import is_training, load_weights, read_checkpoint

Item = TypeVar("Item")


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
        return self.batch([image], count)[0]

    def batch(self, images: Sequence[Image.Image], count: int = 5) -> list[list[tuple[str, float]]]:
        """The same for several images, which go through the model together where the transform gives them one size."""
        device = next(self.model.parameters()).device
        found = []
        for inputs in batches([self.transform(image) for image in images], lambda each: each.shape):
            with torch.inference_mode():
                logits = self.model.eval()(torch.stack(inputs).to(device)).float()
            best = logits.softmax(-1).topk(min(count, logits.shape[-1]))
            for places, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True):
                found.append([(self.labels[i], share) for i, share in zip(places, shares, strict=True)])
        return found


def batches(items: Iterable[Item], kind: Callable[[Item], object]) -> Iterator[list[Item]]:
    """Neighbours of one kind, in lists.

    >>> list(batches([1, 3, 2, 5], lambda each: each % 2))
    [[1, 3], [2], [5]]
    """
    return (list(group) for _, group in groupby(items, kind))


def resolve_device(name: str | None) -> torch.device:
    """The device of a name; without one the GPU, or else the CPU.

    Raises:
        ConfigError: no such device here.

    >>> resolve_device("gpu")
    Traceback (most recent call last):
    vssm.errors.ConfigError: --device gpu: expected cpu, cuda, cuda:1 or the like
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: expected cpu, cuda, cuda:1 or the like") from error
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def load_predictor(
    name: str | None, checkpoint: Path | None = None, labels: Path | None = None, device: str | None = None
) -> Predictor:
    """Build a classifier with its weights.

    Args:
        name: a timm model; None for a checkpoint of tools/train.py.
        checkpoint: written by tools/train.py, or weights in the model's official layout; None downloads the published
            weights.
        labels: a file with the name of a class on each line; None for the names of the checkpoint or of the model's
            repository, or ImageNet's for a model with 1000 classes.
        device: see `resolve_device`.

    Raises:
        ConfigError, CheckpointError: unknown name, weights that do not fit or cannot be downloaded, a wrong number of
            labels, no such device.
    """
    return predictor_of(read_checkpoint(checkpoint) if checkpoint else {}, name, checkpoint, labels, device)


def predictor_of(
    saved: dict, name: str | None, checkpoint: Path | None, labels: Path | None = None, device: str | None = None
) -> Predictor:
    """The same with a checkpoint that is read already: `saved`, empty for none."""
    place = resolve_device(device)
    described = describe(saved, checkpoint) if is_training(saved) else None
    arguments = model_arguments(described, name)
    names = read_labels(labels)
    if described is not None:
        weights = weights_of_backbone(saved.get("state_dict"), checkpoint)
        model = described.build_model(lambda: create_model(**arguments), weights)
        models.check_fits(weights, model.state_dict(), str(checkpoint), type(model).__name__)
        model.load_state_dict(weights)
        transform = described.build(lambda: build_transform(described.transform))
        described.build(lambda: model.eval()(transform(Image.new("RGB", (32, 32))).unsqueeze(0)))
        names = names or described.classes
    else:
        model = _published(name) if checkpoint is None else _with_weights(name, checkpoint)
        if checkpoint is None:  # repositories of `vssm.inference.hub` have names, of 1000 classes too
            names = names or (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
        transform = published_transform(model)
    labels = class_names(model.num_classes, names)
    return Predictor(model.to(place), transform, labels, arguments)


def published_transform(model: nn.Module) -> Transform:
    """How a model of timm says that images are prepared for its published weights."""
    return create_transform(**resolve_data_config({}, model=model))


def model_arguments(described: Description | None, name: str | None) -> dict:
    """The arguments of `create_model` for a checkpoint's classifier, as it was trained, or for the named model.

    Args:
        described: what the checkpoint says of its model; None where there is no checkpoint, or weights alone.
        name: a timm model; None where the checkpoint says it.

    Raises:
        ConfigError: no name where the checkpoint does not say, or another one than it says.
    """
    if described is None:
        if name is None:
            raise ConfigError("which model? Name it with --model, or give a checkpoint of tools/train.py")
        return {"name": name}
    if name not in (None, described.backbone["name"]):
        raise ConfigError(f"{described.source} is a checkpoint of {described.backbone['name']}, not of {name}")
    return described.backbone


def weights_of_backbone(state: object, path: str | Path) -> dict[str, Tensor]:
    """A classifier's part of a training's weights, by the names that the timm model has for them."""
    prefix = "backbone."
    weights = models.weights_in(state, str(path))
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _with_weights(name: str, path: Path) -> nn.Module:
    """A model with the weights of a file, and as many classes as the classifier in it has."""
    model = create_model(name)
    count = _classes_in(path, model)
    if count not in (None, model.num_classes):
        model = create_model(name, num_classes=count)
    load_weights(model, path)
    return model


def _classes_in(path: Path, model: nn.Module) -> int | None:
    """The number of outputs of the classifier in a file of weights; None where it has none of the model's name."""
    if isinstance(model, models.Backbone):
        weights = models.our_layout(models.read_checkpoint(path, model.weights_under), model)
        layer = model.classifier
    else:
        weights, layer = models.read_checkpoint(path), (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    layer = layer[0] if isinstance(layer, tuple | list) else layer  # of several classifiers all have the same classes
    weight = weights.get(f"{layer}.weight")
    return None if weight is None else len(weight)


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
    """The names in a file of labels; None where none is given."""
    if path is not None and not path.is_file():
        raise ConfigError(f"there is no file of labels {path}")
    try:
        return None if path is None else names_in(path)
    except DataError as error:
        raise ConfigError(f"--labels: {error}") from error
