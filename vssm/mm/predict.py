"""What tools/predict.py does: the classes, objects or class maps of images, drawn and written as JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from torch import Tensor, nn

from vssm import models
from vssm.data import build_transform, read_rgb
from vssm.data.transforms import Transform
from vssm.mm import scenes
from vssm.mm.checkpoint import is_training, load_backbone, read_checkpoint
from vssm.mm.classifier import create_backbone
from vssm.mm.cli import make_directory
from vssm.mm.errors import ConfigError
from vssm.mm.scenes import ScenePredictor
from vssm.viz import draw_predictions


@dataclass
class Predictor:
    """A model with the transform it was evaluated with, and the names of its classes.

    Args:
        model: a timm model.
        transform: from an RGB image to (channels, height, width).
        labels: names of the classes.
    """

    model: nn.Module
    transform: Transform
    labels: Sequence[str]

    def __call__(self, image: Image.Image, count: int = 5) -> list[tuple[str, float]]:
        """The best classes of an image with their probabilities, best first."""
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            logits = self.model.eval()(self.transform(image)[None].to(device))[0]
        best = logits.float().softmax(-1).topk(min(count, len(logits)))
        return [(self.labels[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def load_predictor(
    name: str | None, checkpoint: Path | None = None, labels: Path | None = None
) -> Predictor | ScenePredictor:
    """Build a model with its weights.

    Args:
        name: a timm model, or a configuration file of detection or segmentation; None for a checkpoint that tells.
        checkpoint: written by tools/train.py, or weights in the model's official layout; None downloads the published
            weights.
        labels: a file with the name of a class on each line; None for the checkpoint's, or ImageNet's for a model
            with 1000 classes.

    Raises:
        ConfigError, CheckpointError: unknown name, weights that do not fit or cannot be had, too few labels.
    """
    if name is not None and name.endswith(".py"):
        return scenes.of_config(name, checkpoint, _read_labels(labels))
    saved = read_checkpoint(checkpoint) if checkpoint else {}
    if is_training(saved) and saved["meta"]["backbone"] is None:
        return scenes.of_training(saved, checkpoint, _read_labels(labels))
    if is_training(saved):
        model, transform, names = _of_training(saved, name, checkpoint)
    elif name is None:
        raise ConfigError("which model? Name it with --model, or give a checkpoint of tools/train.py")
    else:
        names = None
        if checkpoint is None:
            model = _published(name)
        else:
            model = create_backbone(name)
            load_backbone(model, checkpoint)
        transform = create_transform(**resolve_data_config({}, model=model))
    names = _labels(model.num_classes, labels, names)
    return Predictor(model.to("cuda" if torch.cuda.is_available() else "cpu"), transform, names)


def _of_training(saved: dict, name: str | None, path: Path) -> tuple[nn.Module, Transform, Sequence[str] | None]:
    """What a checkpoint of tools/train.py says of itself."""
    arguments = {**saved["meta"]["backbone"], "pretrained": False}
    if name not in (None, arguments["model_name"]):
        raise ConfigError(f"{path} is a checkpoint of {arguments['model_name']}, not of {name}")
    model = create_backbone(**arguments)
    prefix = "backbone."
    weights: dict[str, Tensor] = {
        key.removeprefix(prefix): value for key, value in saved["state_dict"].items() if key.startswith(prefix)
    }
    models.check_fits(weights, model.state_dict(), str(path), type(model).__name__)
    model.load_state_dict(weights)
    classes = (saved["meta"].get("dataset_meta") or {}).get("classes")
    return model, build_transform(saved["meta"]["transform"]), classes


def _published(name: str) -> nn.Module:
    create_backbone(name, pretrained=False)
    try:
        return timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"the published weights of {name} cannot be had ({str(error).splitlines()[0]}); "
            "give a file with --checkpoint"
        ) from error


def _labels(count: int, path: Path | None, names: Sequence[str] | None) -> Sequence[str]:
    names = _read_labels(path) or names
    if names is None and count == 1000:
        names = ImageNetInfo().label_descriptions()
    elif names is None:
        names = [f"class {index}" for index in range(count)]
    if len(names) != count:
        raise ConfigError(f"the model has {count} classes, but there are {len(names)} labels")
    return names


def _read_labels(path: Path | None) -> list[str] | None:
    """The lines of a file of labels; None where none is given."""
    if path is not None and not path.is_file():
        raise ConfigError(f"there is no file of labels {path}")
    return None if path is None else path.read_text().splitlines()


def predict_files(predictor: Predictor | ScenePredictor, paths: Sequence[Path], picture: Path) -> list[dict]:
    """What a model finds in each image file; drawn, and written as JSON beside the picture.

    Args:
        predictor: a classifier draws one picture of all images; a detector or segmentor one of each, with the image's
            name after the picture's where there are several.
        paths: of the images.
        picture: the file to write.

    Returns:
        For each image its path as ``image``, the picture, and ``classes`` (pairs of a class and its probability, best
        first; or a class and its share of the pixels) or ``objects``.

    Raises:
        BadImageError: a file that cannot be read as an image.
        ConfigError: the picture cannot be written.
    """
    images = [read_rgb(str(path), str(path)) for path in paths]
    make_directory(picture.parent, "--out")
    if isinstance(predictor, Predictor):
        predictions = [predictor(image) for image in images]
        draw_predictions(images, predictions, path=picture)
        found = [{"picture": str(picture), "classes": best} for best in predictions]
    else:
        pictures = _pictures(picture, paths)
        found = [{"picture": str(file), **predictor(image, file)} for image, file in zip(images, pictures, strict=True)]
    results = [{"image": str(path), **each} for path, each in zip(paths, found, strict=True)]
    picture.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    return results


def _pictures(picture: Path, paths: Sequence[Path]) -> list[Path]:
    """A file for each image; images of one name in several folders get a number."""
    if len(paths) == 1:
        return [picture]
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{name}_{number}" for number, name in enumerate(names)]
    return [picture.with_name(f"{picture.stem}_{name}{picture.suffix}") for name in names]
