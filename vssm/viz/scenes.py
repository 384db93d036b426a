"""Pictures of a detector's or segmentor's predictions: boxes and masks, or a class map, on the image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vssm.viz.lettering import fitted, lettering
from vssm.viz.style import GAP, INK, MARGIN, PALE, PAPER, font, save

Colour = tuple[int, int, int]

# Small images are enlarged to this width, so that names can be read.
SMALLEST = 480
LETTERS = 14
# How much of an image shows through a mask.
CLEAR = 0.5
LEGEND, SHARE = 220, 56
ROW = 24


def distinct_colours(count: int) -> list[Colour]:
    """Colours for classes that have none.

    >>> distinct_colours(2)
    [(230, 69, 69), (69, 126, 230)]
    """
    hues = [(i * 0.6069) % 1 for i in range(count)]
    return [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.7, 0.9)) for hue in hues]


def draw_objects(
    image: Image.Image,
    boxes: np.ndarray,
    names: Sequence[str],
    scores: Sequence[float],
    colours: Sequence[Colour],
    masks: np.ndarray | None = None,
    *,
    path: str | Path,
) -> Path:
    """Write a picture of an image with the objects found in it, the most certain on top.

    Args:
        image: in any mode and size.
        boxes: (objects, 4), left, top, right, bottom in pixels of the image.
        names: the class of each object.
        scores: of each object, 0 to 1.
        colours: of each object, red, green, blue from 0 to 255.
        masks: (objects, height, width), true inside an object; None for none.
        path: of the file to write; its folder is made.

    Returns:
        The path.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "objects.png"
    >>> box = np.array([[4, 4, 30, 20]])
    >>> _ = draw_objects(Image.new("RGB", (64, 32)), box, ["cat"], [0.9], [(255, 0, 0)], path=file)
    >>> Image.open(file).size
    (480, 240)
    """
    order = np.argsort(scores)
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    if masks is not None:
        for i in order:
            pixels[masks[i]] = CLEAR * pixels[masks[i]] + (1 - CLEAR) * np.array(colours[i])
    picture, scale = _enlarged(Image.fromarray(pixels.round().astype(np.uint8)))
    draw = ImageDraw.Draw(picture)
    for i in order:
        left, top, right, bottom = (float(edge) * scale for edge in boxes[i])
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=colours[i], width=2)
        _tag(draw, (left, top), names[i], f" {scores[i]:.2f}", colours[i], picture.width)
    return save(picture, path)


def draw_class_map(
    image: Image.Image, class_map: np.ndarray, names: Sequence[str], colours: Sequence[Colour], *, path: str | Path
) -> Path:
    """Write a picture of an image with each pixel coloured by its class, and a legend.

    Args:
        image: in any mode and size.
        class_map: (height, width), numbers of classes.
        names: of all classes.
        colours: of all classes, red, green, blue from 0 to 255.
        path: of the file to write; its folder is made.

    Returns:
        The path.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "map.png"
    >>> classes = np.zeros((32, 64), dtype=int)
    >>> _ = draw_class_map(Image.new("RGB", (64, 32)), classes, ["sky"], [(0, 0, 255)], path=file)
    >>> Image.open(file).size
    (766, 288)
    """
    painted = np.array(colours, dtype=float)[class_map]
    pixels = CLEAR * np.asarray(image.convert("RGB"), dtype=float) + (1 - CLEAR) * painted
    scene, _ = _enlarged(Image.fromarray(pixels.round().astype(np.uint8)))
    shares = np.bincount(class_map.ravel(), minlength=len(names)) / class_map.size
    present = [i for i in np.argsort(-shares) if shares[i] > 0]
    left = MARGIN + scene.width + GAP
    height = max(scene.height, ROW * len(present)) + 2 * MARGIN
    picture = Image.new("RGB", (left + LEGEND + MARGIN, height), PAPER)
    picture.paste(scene, (MARGIN, MARGIN))
    draw = ImageDraw.Draw(picture)
    for row, i in enumerate(present):
        top = MARGIN + row * ROW
        draw.rectangle((left, top, left + 15, top + 15), fill=colours[i], outline=PALE)
        name, letters = fitted(names[i], LEGEND - 24 - SHARE, LETTERS)
        draw.text((left + 24, top - 1), name, fill=INK, font=letters)
        draw.text((left + LEGEND, top - 1), f"{shares[i]:.1%}", fill=PALE, font=font(LETTERS), anchor="ra")
    return save(picture, path)


def _enlarged(image: Image.Image) -> tuple[Image.Image, float]:
    scale = max(1.0, SMALLEST / image.width)
    size = round(image.width * scale), round(image.height * scale)
    return image.resize(size, Image.Resampling.BICUBIC), scale


def _tag(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], name: str, score: str, colour: Colour, width: int
) -> None:
    """A name and its score on its colour, above the corner, or below it at the top edge, in a picture of this width."""
    name, letters = fitted(name, width - 6 - lettering(score, LETTERS)[1].getlength(score), LETTERS)
    text = name + score
    left, top, right, bottom = draw.textbbox((0, 0), text, font=letters)
    x, y = min(corner[0], max(0, width - 7 - (right - left))), corner[1] - (bottom - top) - 6
    y = y if y >= 0 else corner[1]
    draw.rectangle((x, y, x + right - left + 6, y + bottom - top + 6), fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    draw.text((x + 3 - left, y + 3 - top), text, fill=INK if bright else PAPER, font=letters)
