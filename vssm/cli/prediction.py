"""tools/predict.py: predicts classes, objects or class maps of images, draws them, and writes them as JSON."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vssm import inference
from vssm.data import read_rgb
from vssm.files import make_directory
from vssm.inference.predictor import Predictor, predictor_of, read_labels
from vssm.viz import draw_predictions

if TYPE_CHECKING:
    from vssm.mm.tasks.scenes import ScenePredictor


def run_prediction(arguments: argparse.Namespace) -> None:
    """Predict as the arguments of `predict_parser` say."""
    predictor = load_predictor(arguments.model, arguments.checkpoint, arguments.labels)
    for result in predict_files(predictor, arguments.images, arguments.out):
        print(result["image"], "->", result["picture"])
        for line in _lines(result):
            print(f"  {line}")
    print(f"results: {arguments.out.with_suffix('.json')}")


def load_predictor(
    name: str | None, checkpoint: Path | None = None, labels: Path | None = None
) -> "Predictor | ScenePredictor":
    """Build a model with its weights; only detectors and segmentors need the training packages.

    Args:
        name: a timm model, or a configuration file of detection or segmentation; None for a
            checkpoint of tools/train.py.
        checkpoint, labels: see `vssm.inference.load_predictor`.

    Raises:
        ConfigError, CheckpointError: unknown name, weights that do not fit or cannot be downloaded, a wrong number of
            labels.
    """
    if name is not None and name.endswith(".py"):
        from vssm.mm.tasks import scenes

        return scenes.of_config(name, checkpoint, read_labels(labels))
    saved = inference.read_checkpoint(checkpoint) if checkpoint else {}
    if inference.is_training(saved) and saved["meta"]["backbone"] is None:
        from vssm.mm.tasks import scenes

        return scenes.of_training(saved, checkpoint, read_labels(labels))
    return predictor_of(saved, name, checkpoint, labels)


def predict_files(predictor: "Predictor | ScenePredictor", paths: Sequence[Path], picture: Path) -> list[dict]:
    """Predict image files, draw the results, and write them as JSON beside the picture.

    Args:
        predictor: a classifier draws one picture of all images; a detector or segmentor one per image, with the name of
            the image appended if there are several.
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


def _lines(result: dict) -> list[str]:
    """A result of `predict_files` in words."""
    if "objects" in result:
        return [f"{each['score']:6.1%}  {each['label']:<16} at {each['box']}" for each in result["objects"]]
    classes = result["classes"]
    pairs = classes.items() if isinstance(classes, dict) else classes
    return [f"{share:6.1%}  {name}" for name, share in pairs]


def _pictures(picture: Path, paths: Sequence[Path]) -> list[Path]:
    """A file for each image; images with the same name in different folders get a number."""
    if len(paths) == 1:
        return [picture]
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{name}_{number}" for number, name in enumerate(names)]
    return [picture.with_name(f"{picture.stem}_{name}{picture.suffix}") for name in names]
