"""From an 8-bit RGB image to a normalised tensor: timm's published recipes, or an albumentations pipeline.

A config names one as plain data, `dict(type="TimmTransform", ...)` or `dict(type="AlbumentationsTransform", ...)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.layers import to_2tuple
from torch import Tensor

from vssm.data.decode import MAX_PIXELS, DataError
from vssm.data.optional import import_albumentations, is_installed

Transform = Callable[[Image.Image], Tensor]


class TimmTransform:
    """timm.data.create_transform: crops, flips, RandAugment, colour jitter, random erasing, normalisation.

    Args:
        input_size: side of the square result in pixels, or (height, width).
        is_training: random augmentation, or resize and centre crop.
        options: any other argument of timm.data.create_transform by its name, such as color_jitter, auto_augment,
            re_prob, interpolation, crop_pct. Note that timm leaves colour jitter out where auto_augment is on.

    Raises:
        ValueError: an option that timm does not know, or sizes beyond `vssm.data.decode.MAX_PIXELS`; a DataError for an
            image that is far too oblong for its size after the transform.

    >>> transform = TimmTransform(32, interpolation="bicubic", crop_pct=0.875)
    >>> transform(Image.new("RGB", (50, 40))).shape
    torch.Size([3, 32, 32])
    """

    def __init__(self, input_size: int | Sequence[int], is_training: bool = False, **options: Any) -> None:
        known = inspect.signature(create_transform).parameters
        for name in options:
            if name not in known:
                raise ValueError(f"timm's transforms have no option {name!r}; known: {', '.join(sorted(known))}")
        self.size, self.options = to_2tuple(input_size), options
        self.transform = create_transform(input_size, is_training=is_training, **options)
        self.square = max(map(_square, getattr(self.transform, "transforms", ())), default=0)
        if self.square > MAX_PIXELS:
            side = round(self.square**0.5)
            raise ValueError(
                f"images would have {side} pixels a side, from input_size={input_size} and crop_pct; expected at most "
                f"{int(MAX_PIXELS**0.5)}"
            )

    @property
    def normalised(self) -> dict[str, tuple[float, ...]] | None:
        """The mean and the deviation that pixels are normalised with; None where they are not."""
        if not self.options.get("normalize", True):
            return None
        usual = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
        return {key: tuple(self.options.get(key, value)) for key, value in usual.items()}

    def __call__(self, image: Image.Image) -> Tensor:
        # The shorter side is resized, and the other with it.
        if self.square * max(image.size) > 4 * MAX_PIXELS * min(image.size):
            raise DataError(
                f"an image of {image.size[0]} x {image.size[1]} pixels is too oblong to be enlarged to "
                f"{round(self.square**0.5)} pixels at its shorter side: choose a smaller input_size"
            )
        return self.transform(image)

    def __repr__(self) -> str:
        return f"TimmTransform({self.transform})"


class AlbumentationsTransform:
    """An albumentations pipeline on 8-bit RGB, with normalisation after it.

    Random numbers come from torch's generator, so that loader workers differ and a seed repeats a run.

    Args:
        transforms: one mapping for each transform: its class name under `type`, and its arguments. A transform that
            takes others (OneOf, SomeOf) has mappings under its own `transforms`.
        mean, std: of the three channels in 0..1.

    Raises:
        ImportError: albumentations is not installed; the message gives the command.
        ValueError: an unknown transform, or wrong arguments.
    """

    def __init__(
        self,
        transforms: Sequence[Mapping[str, Any]],
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        self._albumentations = import_albumentations()
        self.pipeline = self._albumentations.Compose([self._build(transform) for transform in transforms])
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)

    def _build(self, config: Mapping[str, Any]) -> Any:
        arguments = dict(config)
        name = arguments.pop("type", None)
        if name in ("Normalize", "ToTensorV2"):
            raise ValueError(f"leave {name} out of the pipeline: the result is normalised with mean and std after it")
        transform = _albumentation(str(name))
        if transform is None:
            raise ValueError(f"albumentations {self._albumentations.__version__} has no transform {name!r}")
        if "transforms" in arguments:
            arguments["transforms"] = [self._build(inner) for inner in arguments["transforms"]]
        # albumentations only warns of an unknown argument, and ignores it.
        known = inspect.signature(transform).parameters
        for argument in arguments:
            if argument not in known:
                raise ValueError(
                    f"albumentations' {name} has no argument {argument!r}; known: {', '.join(sorted(known))}"
                )
        try:
            return transform(**arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"albumentations' {name} refuses its arguments {arguments}: {error}") from error

    def __call__(self, image: Image.Image) -> Tensor:
        self.pipeline.set_random_seed(int(torch.randint(2**31, ())))
        pixels = self.pipeline(image=np.asarray(image))["image"]
        if pixels.dtype != np.uint8:
            raise ValueError(
                f"the albumentations pipeline made {pixels.dtype}; expected uint8: leave conversions out of it"
            )
        values = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float() / 255
        return (values - self.mean) / self.std

    def __repr__(self) -> str:
        return f"AlbumentationsTransform({self.pipeline})"


def _square(step: object) -> float:
    """The most pixels that a step of timm's transforms makes of a square image."""
    if hasattr(step, "max_seq_len"):
        return step.max_seq_len * max(to_2tuple(step.patch_size)) ** 2
    size = getattr(step, "size", None)
    return 0 if size is None else max(to_2tuple(size)) ** 2


# Names in configs, and their classes.
TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "TimmTransform": TimmTransform,
    "AlbumentationsTransform": AlbumentationsTransform,
}


def is_transform(name: str) -> bool:
    """Whether `build_transform` knows a type, or an AlbumentationsTransform may contain it.

    >>> is_transform("TimmTransform"), is_transform("os.system")
    (True, False)
    """
    return name in TRANSFORMS or (is_installed("albumentations") and _albumentation(name) is not None)


def _albumentation(name: str) -> type | None:
    """The transform of albumentations with this name; None for other things in that module, such as functions."""
    module = import_albumentations()
    found = getattr(module, name, None)
    kinds = module.BasicTransform, module.BaseCompose
    return found if inspect.isclass(found) and issubclass(found, kinds) else None


def build_transform(transform: Transform | Mapping[str, Any]) -> Transform:
    """Build a transform from plain data; a callable is returned as it is.

    >>> build_transform(dict(type="TimmTransform", input_size=32))(Image.new("RGB", (32, 32))).shape
    torch.Size([3, 32, 32])
    """
    if not isinstance(transform, Mapping):
        return transform
    arguments = dict(transform)
    name = arguments.pop("type", None)
    if name not in TRANSFORMS:
        raise ValueError(f"no transform is of type {name!r}; known: {', '.join(TRANSFORMS)}")
    return TRANSFORMS[name](**arguments)
