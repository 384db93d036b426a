"""A classifier as a repository of the Hugging Face hub: configuration, weights as safetensors, and a card."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import DEFAULT_CROP_PCT, create_transform
from timm.models import save_for_hf
from torch import nn

from vssm.data import TimmTransform
from vssm.errors import ConfigError, UserError
from vssm.files import unfinished
from vssm.inference.predictor import Predictor
from vssm.models import FAMILIES

_CARD = """---
license: {license}
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
- transformers
- vssm
---

# {title}

`{name}` ({millions:.1f} M parameters, {classes} classes, {height} x {width} pixels), a model of
the Python package vssm.
{family}
    import timm
    import vssm  # registers the model with timm

    model = timm.create_model("hf-hub:OWNER/{title}", pretrained=True)

    from transformers import pipeline

    classify = pipeline("image-classification", model="OWNER/{title}")

Without `import vssm`, timm says that the model is unknown, and transformers "Please upgrade timm".

## Training

What was it trained on, how, and how good is it?
"""
_FAMILY = """
- Paper: <https://arxiv.org/abs/{paper}>
- Official implementation: <{repository}>
"""


def write_repository(predictor: Predictor, folder: Path, license: str) -> None:
    """Write `config.json`, `model.safetensors` and `README.md`, and read them again before they are put in place.

    timm reads the folder as `timm.create_model("local-dir:FOLDER", pretrained=True)`, transformers with
    `from_pretrained(FOLDER)`, both after `import vssm`; and both read it from the hub once it is uploaded.

    Args:
        predictor: a classifier of `load_predictor`, on the CPU; its classes become the labels.
        folder: made here.
        license: of the weights, as the hub writes it: "apache-2.0", "mit", "other".

    Raises:
        ConfigError: the folder exists, or images are prepared in a way that the configuration cannot say.
        UserError: what was written gives other outputs than the model; it is not kept.
    """
    if folder.exists():
        raise ConfigError(f"--out: {folder} exists already: choose another name")
    model, name = predictor.model.eval(), str(predictor.arguments["name"])
    temporary = unfinished(folder)
    try:
        # Two of ImageNet's classes are named alike; transformers knows those names itself.
        distinct = len(set(predictor.labels)) == len(predictor.labels)
        labels = {"label_names": list(predictor.labels)} if distinct else {}
        told = {"pretrained_cfg": {"license": license}, **labels}
        save_for_hf(model, temporary, told, safe_serialization=True, data_config=_preparation(predictor))
        size = _mend_config(temporary / "config.json")
        (temporary / "README.md").write_text(_card(model, name, folder.name, license, size), encoding="utf-8")
        _check(model, temporary, size)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _preparation(predictor: Predictor) -> dict[str, Any] | None:
    """How images are prepared, in the terms of timm's configurations; None where the model's own says it."""
    transform = predictor.transform
    if isinstance(transform, TimmTransform):
        given = {**_DEFAULTS, **{key: value for key, value in transform.options.items() if key in _DEFAULTS}}
        given["crop_pct"] = given["crop_pct"] or DEFAULT_CROP_PCT
        given["crop_mode"] = given["crop_mode"] or "center"
        return {**given, "input_size": (3, *transform.size)}
    if type(transform).__module__.startswith("vssm."):
        raise ConfigError(
            f"images are prepared by {type(transform).__name__}, which a config.json of the hub cannot say: evaluate "
            "the model with a TimmTransform, and save that"
        )
    return None


_DEFAULTS = {
    key: inspect.signature(create_transform).parameters[key].default
    for key in ("interpolation", "mean", "std", "crop_pct", "crop_mode")
}


def _mend_config(file: Path) -> list[int]:
    """timm writes the number of classes twice, and transformers 5 then gives it to the model twice, which fails.

    Returns:
        Channels, height and width of the images.
    """
    config = json.loads(file.read_text(encoding="utf-8"))
    config.get("model_args", {}).pop("num_classes", None)
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return config["pretrained_cfg"]["input_size"]


def _card(model: nn.Module, name: str, title: str, license: str, size: list[int]) -> str:
    family = next((family for family in FAMILIES.values() if name.partition(".")[0] in family.models), None)
    about = "" if family is None else _FAMILY.format(paper=family.paper, repository=family.repository)
    _, height, width = size
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return _CARD.format(
        license=license,
        title=title,
        name=name,
        millions=millions,
        classes=model.num_classes,
        height=height,
        width=width,
        family=about,
    )


def _check(model: nn.Module, folder: Path, size: list[int]) -> None:
    images = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    read = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        if not torch.equal(read(images), model(images)):
            raise UserError("the files give other outputs than the model: not kept")
