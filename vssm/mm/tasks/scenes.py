"""Prediction with detectors and segmentors: objects or a class map, drawn and as plain values."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image
from torch import nn

from vssm import models
from vssm.errors import ConfigError
from vssm.inference.description import describe
from vssm.inference.predictor import batches
from vssm.inference.saved import to_plain
from vssm.mm.runtime.config import check_scope, load_config, part_registries
from vssm.mm.tasks.reading import is_upright, to_bgr
from vssm.mm.tasks.weights import classes_of_heads, load_training, load_weights
from vssm.viz.scenes import Colour, distinct_colours, draw_class_map, draw_objects

# Types that mmdet and mmcv look up among mmcv's operators, not in a registry.
OPERATORS = {"RoIAlign", "nms", "soft_nms"}
PACKAGES = ("mmengine.", "mmdet.", "mmseg.", "mmcv.", "vssm.", "timm.", "torch.")
# Registered, but these evaluate text, read files that their arguments name, or fetch language models by name.
REACHING_OUT = (
    "mmdet.datasets.transforms.text_transformers",
    "mmdet.models.dense_heads.atss_vlfusion_head",
    "mmdet.models.detectors.glip",
    "mmdet.models.detectors.grounding_dino",
    "mmdet.models.detectors.kd_one_stage",
    "mmdet.models.detectors.lad",
    "mmdet.models.language_models",
    "mmdet.models.mot",
    "mmdet.models.task_modules.tracking",
    "mmdet.models.trackers",
    "mmseg.models.backbones.vpd",
    "mmseg.models.text_encoder",
)
# Objects below this score are in the JSON and not in the picture.
DRAWN = 0.3


@dataclass
class ScenePredictor:
    """A detector or segmentor with its test pipeline and the names of its classes.

    Args:
        model: of mmdet or mmseg.
        pipeline: for tests, as in a config.
        names: of the classes.
        colours: of the classes.

    Attributes:
        upright: whether images are to be read as their EXIF orientation says.
    """

    model: nn.Module
    pipeline: Sequence[dict]
    names: Sequence[str]
    colours: Sequence[Colour]

    def __post_init__(self) -> None:
        self.upright = is_upright(self.pipeline)
        steps = [dict(type="LoadImageFromNDArray"), *(s for s in self.pipeline if not s["type"].startswith("Load"))]
        self._prepare = Compose(steps)

    def class_map_files(self, pictures: Sequence[Path]) -> list[Path]:
        """The files of numbers that a segmentor writes beside its pictures; none for a detector."""
        return [class_map_file(picture) for picture in pictures if hasattr(self.model, "decode_head")]

    def prepared(self, image: Image.Image) -> dict:
        """What the test pipeline makes of an RGB image for the model."""
        return self._prepare({"img": to_bgr(image), "img_id": 0})

    def batch(self, images: Sequence[Image.Image], pictures: Sequence[Path]) -> list[dict]:
        """Predict RGB images, draw the results, and return them as plain values: ``objects`` or ``classes``.

        Images that the pipeline gives one size go through the model together; none is padded to another's size.
        """
        prepared = [self.prepared(image) for image in images]
        found = []
        for group in batches(prepared, lambda each: each["inputs"].shape):
            with torch.inference_mode():
                found += self.model.test_step({key: [each[key] for each in group] for key in group[0]})
        return [self._drawn(*each) for each in zip(images, found, pictures, strict=True)]

    def _drawn(self, image: Image.Image, sample: object, picture: Path) -> dict:
        if "pred_instances" in sample:
            return self._objects(image, sample.pred_instances.cpu().numpy(), picture)
        return self._class_map(image, sample.pred_sem_seg.data[0].cpu().numpy(), picture)

    def _objects(self, image: Image.Image, found: object, picture: Path) -> dict:
        masks = found.get("masks")
        drawn = found.scores >= DRAWN
        draw_objects(
            image,
            found.bboxes[drawn],
            [self.names[i] for i in found.labels[drawn]],
            found.scores[drawn].tolist(),
            [self.colours[i] for i in found.labels[drawn]],
            None if masks is None else masks[drawn],
            path=picture,
        )
        objects = [
            {"label": self.names[label], "score": round(float(score), 4), "box": [round(float(x), 2) for x in box]}
            for label, score, box in zip(found.labels, found.scores, found.bboxes, strict=True)
        ]
        if masks is not None:
            for each, mask in zip(objects, masks, strict=True):
                each["mask"] = run_lengths(mask)
        return {"objects": objects}

    def _class_map(self, image: Image.Image, classes: np.ndarray, picture: Path) -> dict:
        draw_class_map(image, classes, self.names, self.colours, path=picture)
        shares = np.bincount(classes.ravel(), minlength=len(self.names)) / classes.size
        numbers = class_map_file(picture)
        Image.fromarray(classes.astype(np.uint8 if len(self.names) <= 256 else np.uint16)).save(numbers)
        present = {self.names[i]: round(float(shares[i]), 4) for i in np.argsort(-shares) if shares[i]}
        return {"classes": present, "class_map": str(numbers)}


def class_map_file(picture: Path) -> Path:
    """The file of the numbers of the classes beside a picture.

    >>> class_map_file(Path("a/b.jpg")).name
    'b_classes.png'
    """
    return picture.with_name(f"{picture.stem}_classes.png")


def run_lengths(mask: np.ndarray) -> dict:
    """A mask (height, width) as COCO's compressed run lengths, which pycocotools decodes."""
    from pycocotools.mask import encode

    code = encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


def of_training(saved: dict, path: Path, labels: Sequence[str] | None, device: torch.device) -> ScenePredictor:
    """A predictor from a checkpoint of tools/train.py, which describes its model.

    Raises:
        CheckpointError: the description is refused, or the weights do not fit it.
    """
    described = describe(saved, path, is_part)
    check_scope(described.scope)
    weights = models.weights_in(saved.get("state_dict"), str(path))
    model = described.build_model(lambda: _build(described.model, described.scope), weights)
    load_training(model, saved, path)
    predictor = described.build(
        lambda: _predictor(
            model, described.pipeline, {"classes": described.classes, "palette": described.palette}, labels, device
        )
    )
    described.build(lambda: predictor.prepared(Image.new("RGB", (32, 32))))
    return predictor


def of_config(
    config_file: str, path: Path | None, labels: Sequence[str] | None, device: torch.device
) -> ScenePredictor:
    """A predictor from a config of detection or segmentation, and a file of weights, with as many classes as labels."""
    config = load_config(config_file)
    scope = config.get("default_scope") or "mmengine"
    if scope == "mmengine":
        raise ConfigError(f"{config_file} is a config of classification: name its model, such as --model vim_tiny")
    if path is None:
        raise ConfigError(f"--model {config_file} says nothing of weights: give them with --checkpoint")
    description = to_plain(config.model)
    if labels:
        _set_classes(description, len(labels))
    model = _build(description, scope)
    load_weights(model, path)
    return _predictor(model, to_plain(config.test_dataloader.dataset.pipeline), _described(config), labels, device)


def _set_classes(part: object, count: int, place: str = "") -> None:
    """Give the heads in a description of a model this number of classes; a head of one, such as an RPN's, keeps it."""
    if isinstance(part, dict):
        if "head" in place and "loss" not in place and part.get("num_classes", 1) > 1:
            if part.get("out_channels") == part["num_classes"]:
                part["out_channels"] = count
            part["num_classes"] = count
        for key, value in part.items():
            _set_classes(value, count, f"{place}.{key}")
    elif isinstance(part, list | tuple):
        for value in part:
            _set_classes(value, count, place)


def is_part(name: str) -> bool:
    """Whether a checkpoint may describe a part of this type: a layer, a model, a transform, or a helper of theirs.

    Asks the registries' tables: ``Registry.get`` imports a module of the name where they have no such entry.

    >>> is_part("ReLU"), is_part("os")
    (True, False)
    """
    if name in OPERATORS:
        return True
    registries = part_registries()
    for registry in registries:  # all of them before one is asked: they put layers into each other
        registry.import_from_location()
    kinds = [registry.module_dict[name] for registry in registries if name in registry.module_dict]
    found = [f"{getattr(kind, '__module__', '')}." for kind in kinds]
    refused = tuple(f"{module}." for module in REACHING_OUT)
    return bool(found) and all(module.startswith(PACKAGES) and not module.startswith(refused) for module in found)


def _build(model: dict, scope: str) -> nn.Module:
    init_default_scope(scope)
    return MODELS.build(ConfigDict(model))


def _described(config: Config) -> dict:
    """The names and colours of the classes, from the config or the class of its data set."""
    data = config.test_dataloader.dataset
    own = getattr(DATASETS.get(data.type), "METAINFO", {})
    return {**own, **data.get("metainfo", {})}


def _predictor(
    model: nn.Module,
    pipeline: Sequence[dict],
    described: dict,
    labels: Sequence[str] | None,
    device: torch.device,
) -> ScenePredictor:
    heads = classes_of_heads(model)
    if not heads:
        raise ConfigError(f"a {type(model).__name__} has no head with classes; expected a detector or a segmentor")
    count = next(iter(heads.values()))
    names = labels or described.get("classes") or [f"class {i}" for i in range(count)]
    if len(names) != count:
        raise ConfigError(f"the model has {count} classes, but there are {len(names)} labels")
    palette = described.get("palette")  # mmdet says "random" where there is none
    fits = isinstance(palette, list | tuple) and len(palette) == count
    colours = [tuple(colour) for colour in palette] if fits else distinct_colours(count)
    model = model if device.type == "cuda" else revert_sync_batchnorm(model)
    return ScenePredictor(model.to(device).eval(), pipeline, names, colours)
