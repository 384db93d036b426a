"""The description of a model in a checkpoint, which a stranger may have written: checked before anything is built.

A configuration file is code that its user chose to run; a checkpoint is data that anybody may have written. mmengine
imports whatever a ``type`` names, some classes of mmcv and mmdet evaluate strings, and timm fetches models by address.
So a description may hold plain values only, types that are known, and no text that reads as a path, an address or code.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from vssm import models
from vssm.data.transforms import is_transform
from vssm.errors import ConfigError
from vssm.inference.create import is_known
from vssm.inference.saved import is_training
from vssm.models import CheckpointError

Built = TypeVar("Built")

SCOPES = ("mmengine", "mmdet", "mmseg")
# Arguments that name weights or settings in other places. They are dropped: the checkpoint has the weights.
FROM_ELSEWHERE = {"cache_dir", "checkpoint_path", "init_cfg", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}
# Far beyond real descriptions: a Cascade Mask R-CNN has 11 levels, 600 values and no number above 2000.
MAX_DEPTH, MAX_VALUES, MAX_TEXT, MAX_INTEGER = 40, 20_000, 200, 100_000
# What asks for memory: sides of pictures, maps and windows in pixels, and how many times a pipeline enlarges a side.
MAX_SIDE, MAX_ENLARGED = 8192, 16
SIDES = re.compile(r"(?:.*_)?(?:sizes?|divisor|scales?|heights?|widths?|shape)")
ENLARGING = re.compile(r".*(?:scale_factor|scale_limit|ratio_range|img_ratios)")
# Words, numbers and orders such as windows(4). Slashes, colons, quotes and file endings are left out; so are dots that
# are no decimal points, and names between double underscores.
TEXT = re.compile(r"(?!.*__)(?:[\w +,=-]|(?<=\d)\.(?=\d)|\(\d+\))*")
MODEL_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Description:
    """A checked description.

    Args:
        source: the file, for errors.
        scope: the package whose classes `model` and `pipeline` name: "mmengine", "mmdet" or "mmseg".
        backbone: arguments of `vssm.inference.create_model`; None for a detector or segmentor.
        transform: of a classifier, see `vssm.data.build_transform`.
        model, pipeline: of a detector or segmentor, as in a config.
        classes: names of the classes, where they are known.
        palette: red, green and blue of each class, where they are known.
    """

    source: str
    scope: str
    backbone: dict | None
    transform: dict | None
    model: dict | None
    pipeline: list | None
    classes: tuple[str, ...] | None
    palette: tuple[tuple[int, ...], ...] | None

    def build_model(self, make: Callable[[], nn.Module], weights: Mapping[str, Tensor]) -> nn.Module:
        """The model that `make` builds, after its outline without memory has been compared with the weights.

        A few numbers in a small file can describe a model of any size.

        Raises:
            CheckpointError: it cannot be built, or the weights are those of another one.
        """
        try:
            with torch.device("meta"):
                outline = make()
        except ConfigError:
            raise
        except Exception:  # some backbones of mmseg compute with numbers while they are built, and need memory
            return self.build(make)
        models.check_fits(weights, outline.state_dict(), self.source, type(outline).__name__)
        return self.build(make)

    def build(self, make: Callable[[], Built]) -> Built:
        """What `make` builds from the description.

        Raises:
            CheckpointError: it cannot be built; ConfigError, which says more, passes.
        """
        try:
            return make()
        except ConfigError:
            raise
        except Exception as error:  # anything can be wrong with the arguments in a stranger's file
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            raise CheckpointError(
                f"{self.source}: what it describes cannot be built ({type(error).__name__}: {reason[:MAX_TEXT]})"
            ) from error


def describe(checkpoint: dict, source: str | Path, is_type: Callable[[str], bool] | None = None) -> Description:
    """Check the description of the model in a checkpoint of a training.

    Args:
        checkpoint: the content of the file.
        source: the file, for errors.
        is_type: whether a detector, a segmentor or their pipelines may have parts of this type; None where only a
            classifier will do.

    Raises:
        CheckpointError: it is not of a classifier; or names the place in the description, and what is wrong there.
    """
    meta = checkpoint["meta"] if is_training(checkpoint) else {}
    scope, backbone, transform = meta.get("scope", "mmengine"), meta.get("backbone"), meta.get("transform")
    model, pipeline, dataset = None, None, meta.get("dataset_meta") or {}
    if scope not in SCOPES:
        raise CheckpointError(f"{source}: scope is {_shown(scope)}; expected one of {', '.join(SCOPES)}")
    if backbone is not None:
        backbone = checked(backbone, f"{source}: meta.backbone", is_type=lambda name: False)
        transform = checked(transform, f"{source}: meta.transform", is_transform, enlarged=MAX_ENLARGED)
        if isinstance(backbone, dict) and "model_name" in backbone:  # the spelling of older files
            backbone = {"name": backbone["model_name"], **{k: v for k, v in backbone.items() if k != "model_name"}}
        _expect(isinstance(backbone, dict) and isinstance(backbone.get("name"), str), source, "meta.backbone")
        _expect(isinstance(transform, dict), source, "meta.transform")
    elif is_type is None and meta.get("model") is not None:
        raise CheckpointError(f"{source}: it is of a detector or segmentor; expected a classifier's")
    else:
        is_type = is_type or (lambda name: False)
        model = checked(meta.get("model"), f"{source}: meta.model", is_type)
        pipeline = checked(meta.get("pipeline"), f"{source}: meta.pipeline", is_type, enlarged=MAX_ENLARGED)
        _expect(isinstance(model, dict) and "type" in model, source, "meta.model")
        steps = isinstance(pipeline, list) and all(isinstance(step, dict) and "type" in step for step in pipeline)
        _expect(steps, source, "meta.pipeline")
    _expect(isinstance(dataset, dict), source, "meta.dataset_meta")
    return Description(
        str(source), scope, backbone, transform, model, pipeline,
        _classes(dataset.get("classes"), source), _palette(dataset.get("palette"), source),
    )  # fmt: skip


def checked(value: object, place: str, is_type: Callable[[str], bool], enlarged: float = math.inf) -> object:
    """A description without arguments that name weights elsewhere; everything else in it is refused or plain.

    Args:
        value: any value out of a file.
        place: where it stands, for errors.
        is_type: whether parts of this type may be built.
        enlarged: how many times all factors together may enlarge a picture's side.

    Raises:
        CheckpointError: an object, a type that is not known, text that is a path, an address or code, or too much.

    >>> checked({"type": "ReLU", "init_cfg": {"checkpoint": "http://nowhere"}}, "meta.model", {"ReLU"}.__contains__)
    {'type': 'ReLU'}
    """
    return _Check(is_type, enlarged).value(value, place, 0)


class _Check:
    """Walks through a description, counts its values and multiplies its factors."""

    def __init__(self, is_type: Callable[[str], bool], enlarged: float) -> None:
        self.is_type, self.enlarged = is_type, enlarged
        self.values, self.factor = 0, 1.0

    def value(self, value: object, place: str, depth: int, name: str = "") -> object:
        """Check a value; `name` is that of the argument that it belongs to."""
        self.values += 1
        if depth > MAX_DEPTH or self.values > MAX_VALUES:
            limit = f"{MAX_DEPTH} levels" if depth > MAX_DEPTH else f"{MAX_VALUES} values"
            raise CheckpointError(f"{place[:MAX_TEXT]}: the description has more than {limit}; nothing was built")
        if isinstance(value, dict):
            return dict(self._items(value, place, depth))
        if type(value) in (list, tuple):
            return type(value)(self.value(part, f"{place}[{i}]", depth + 1, name) for i, part in enumerate(value))
        if isinstance(value, str):
            _check_text(value, place)
        elif isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise CheckpointError(f"{place} is beyond {MAX_INTEGER}; nothing was built")
        elif isinstance(value, int | float):
            self._memory(value, place, name)
        elif value is not None:
            raise CheckpointError(f"{place} is a {type(value).__name__}; expected plain values; nothing was built")
        return value

    def _memory(self, value: float, place: str, name: str) -> None:
        """Refuse a number by which a picture or a map would take any amount of memory."""
        if SIDES.fullmatch(name) and math.isfinite(value) and value > MAX_SIDE:
            raise CheckpointError(f"{place} is {value}; expected at most {MAX_SIDE} pixels; nothing was built")
        if ENLARGING.fullmatch(name):
            self.factor *= max(1.0, value)
            if self.factor > self.enlarged:
                raise CheckpointError(
                    f"{place} is {value}, with which pictures are enlarged {self.factor:g} times; expected at most "
                    f"{self.enlarged:g} times; nothing was built"
                )

    def _items(self, part: Mapping, place: str, depth: int) -> Iterator[tuple[str, object]]:
        for key, value in part.items():
            inner = f"{place}.{_shown(key).strip(chr(39))}"
            if not isinstance(key, str) or not key.isidentifier() or (key.startswith("_") and key != "_scope_"):
                raise CheckpointError(f"{inner} is no name of an argument; nothing was built")
            if key in FROM_ELSEWHERE:
                continue
            if key == "type":
                if not isinstance(value, str) or not value.isidentifier() or not self.is_type(value):
                    raise CheckpointError(
                        f"{inner} is {_shown(value)}, which a checkpoint may not build; if you trust another part, "
                        "give a configuration file that names it with --model"
                    )
            elif key == "_scope_" and value not in SCOPES:
                raise CheckpointError(f"{inner} is {_shown(value)}; expected one of {', '.join(SCOPES)}")
            named = key in ("name", "model_name") and isinstance(value, str) and MODEL_NAME.fullmatch(value)
            yield key, value if named and is_known(value) else self.value(value, inner, depth + 1, key)


def _check_text(text: str, place: str) -> None:
    if len(text) > MAX_TEXT or not TEXT.fullmatch(text):
        raise CheckpointError(
            f"{place} is {_shown(text)}: a description in a checkpoint may hold no path, address or code; nothing was "
            "fetched, opened or built"
        )


def _shown(value: object) -> str:
    shown = repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _expect(holds: bool, source: str | Path, place: str) -> None:
    if not holds:
        raise CheckpointError(f"{source}: {place} does not say what to build; was it written by tools/train.py?")


def _classes(names: object, source: str | Path) -> tuple[str, ...] | None:
    """Names are only printed, so any text will do, without control characters, which could act on a terminal."""
    if names is None:
        return None
    texts = isinstance(names, Sequence) and not isinstance(names, str) and len(names) <= MAX_INTEGER
    _expect(texts and all(isinstance(name, str) for name in names), source, "meta.dataset_meta.classes")
    return tuple("".join(c if c.isprintable() else "?" for c in name[:MAX_TEXT]) for name in names)


def _palette(colours: object, source: str | Path) -> tuple[tuple[int, ...], ...] | None:
    if not colours or isinstance(colours, str):  # mmdet says "random" where there is none
        return None
    _expect(isinstance(colours, Sequence), source, "meta.dataset_meta.palette")
    triples = all(isinstance(each, list | tuple) and len(each) == 3 for each in colours)
    numbers = triples and all(isinstance(part, int) and 0 <= part <= 255 for each in colours for part in each)
    _expect(bool(numbers), source, "meta.dataset_meta.palette")
    return tuple(tuple(each) for each in colours)
