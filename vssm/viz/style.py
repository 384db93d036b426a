"""Colours, fonts and colour scales of all pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

PAPER, INK, PALE, TRACK = "#ffffff", "#1f2328", "#6e7781", "#eaeef2"
MARGIN, GAP = 24, 18

# Steps of a path, early to late: all light enough for a dark line on top.
EARLY_TO_LATE = ("#5a8fd6", "#6cc0c4", "#b5d99c", "#f6d575", "#ef8a62")
# Magnitudes, low to high: dark to bright, in even steps of lightness.
LITTLE_TO_MUCH = ("#0b0724", "#3f1370", "#8c2981", "#de4968", "#fe9f6d", "#fcfdbf")


def colours(values: np.ndarray, scale: tuple[str, ...]) -> np.ndarray:
    """Values from 0 to 1, of any shape, as colours of a scale: (..., 3) uint8.

    >>> colours(np.array([0.0, 0.5, 1.0]), ("#000000", "#ffffff")).tolist()
    [[0, 0, 0], [128, 128, 128], [255, 255, 255]]
    """
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in scale], dtype=float)
    places = np.linspace(0, 1, len(scale))
    channels = [np.interp(values, places, anchors[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def bar(scale: tuple[str, ...], width: int, height: int) -> Image.Image:
    """A scale of colours from left to right."""
    return Image.fromarray(np.repeat(colours(np.linspace(0, 1, width)[None], scale), height, axis=0))


def enlarged(values: np.ndarray, scale: tuple[str, ...], size: tuple[int, int]) -> Image.Image:
    """A map of values from 0 to 1 as a picture of (width, height) pixels, its cells with sharp edges."""
    values = np.round(64 * values) / 64  # more levels are not visible, and make files several times as large
    return Image.fromarray(colours(values, scale)).resize(size, Image.Resampling.NEAREST)


# The formats that pictures are written in, by the ending of their names.
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    "": "PNG",
}


def picture_format(path: str | Path) -> str:
    """The format that the name of a picture asks for; PNG for a name without an ending.

    Raises:
        ValueError: an ending of no known format.

    >>> picture_format("a.JPG"), picture_format("a")
    ('JPEG', 'PNG')
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: no picture is written as {suffix}; expected {', '.join(filter(None, FORMATS))}")
    return FORMATS[suffix]


def save(picture: Image.Image, path: str | Path, palette: int | None = None) -> Path:
    """Write a picture in the format of its name; makes its folder. `palette` colours make a small PNG of a drawing."""
    path = Path(path)
    kind = picture_format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if palette is not None and kind == "PNG":
        picture = picture.quantize(palette, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    options = {"PNG": dict(optimize=True), "JPEG": dict(quality=92), "WEBP": dict(quality=92)}.get(kind, {})
    picture.save(path, format=kind, **options)
    return path
