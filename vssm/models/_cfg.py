"""What the published ImageNet weights of every family have in common, for timm's `pretrained_cfg`."""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


def imagenet_cfg(first_conv: str, classifier: str, **kwargs: Any) -> dict[str, Any]:
    """1000 classes at 224 pixels, resized to 256 and cropped, read by our own loader.

    Args:
        first_conv, classifier: names of the layers whose shapes follow the image's channels and the classes.
        **kwargs: further entries of a `pretrained_cfg` (url, license, origin_url, paper_ids, ...), which
            count more than those here.
    """
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": first_conv,
        "classifier": classifier,
        "custom_load": True,
        **kwargs,
    }
