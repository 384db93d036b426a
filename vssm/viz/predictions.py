"""A picture of a classifier's predictions: one image with its most probable classes as bars, or a grid of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from vssm.viz.lettering import fitted
from vssm.viz.style import GAP, INK, MARGIN, PALE, PAPER, TRACK, font, save

# Pairs of a class and its probability (0 to 1), the most probable first.
Prediction = Sequence[tuple[str, float]]

RIGHT, WRONG, UNJUDGED = "#1a7f37", "#cf222e", "#0969da"
THUMBNAIL, PORTRAIT = 168, 320
LINE = 22
MOST_COLUMNS = 8
BARS = 5


def draw_predictions(
    images: Sequence[Image.Image],
    predictions: Sequence[Prediction],
    truths: Sequence[str] | None = None,
    *,
    path: str | Path,
) -> Path:
    """Write a picture: a grid of images with the most probable class of each, or one image with five bars.

    With truths, right predictions are green with a tick, wrong ones red with a cross and the true class. Without, all
    are blue.

    Args:
        images: in any mode and size.
        predictions: for each image (class, probability) pairs, the most probable first.
        truths: the true class of each image.
        path: of the file to write; its folder is made.

    Returns:
        The path.

    Raises:
        ValueError: no image, or other numbers of predictions or truths than images.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "heart.png"
    >>> _ = draw_predictions([Image.new("RGB", (64, 64))], [[("heart", 0.9), ("disc", 0.1)]], ["heart"], path=file)
    >>> Image.open(file).size
    (780, 368)
    """
    counts = {"predictions": len(predictions)} | ({} if truths is None else {"truths": len(truths)})
    for name, count in counts.items():
        if count != len(images):
            raise ValueError(f"got {len(images)} images and {count} {name}; expected one for each image")
    if not images or not all(predictions):
        raise ValueError("there is nothing to draw; expected at least one image, each with at least one class")
    if len(images) == 1:
        picture = _portrait(images[0], predictions[0], None if truths is None else truths[0])
    else:
        picture = _grid(images, predictions, truths)
    return save(picture, path)


def _portrait(image: Image.Image, prediction: Prediction, truth: str | None) -> Image.Image:
    """One image at the left, its most probable classes as bars at the right."""
    left, bar_width, row = MARGIN + PORTRAIT + 2 * GAP, 376, 54
    picture = Image.new("RGB", (left + bar_width + MARGIN, PORTRAIT + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    picture.paste(_square(image, PORTRAIT), (MARGIN, MARGIN))
    top = MARGIN
    for rank, (name, probability) in enumerate(prediction[:BARS]):
        judged = rank == 0 and truth is not None
        colour = _colour(name, truth) if rank == 0 else PALE
        indent = 24 if judged else 0
        if judged:
            _sign(draw, (left, top), right=name == truth)
        _write(draw, (left + indent, top), name, bar_width - 80 - indent, 17, INK)
        draw.text((left + bar_width, top), _percent(probability), fill=colour, font=font(17), anchor="ra")
        _bar(draw, (left, top + 26), bar_width, 9, probability, colour)
        if judged and name != truth:
            _write(draw, (left + indent, top + 40), f"is: {truth}", bar_width - indent, 17, WRONG)
            top += 30
        top += row
    return picture


def _grid(
    images: Sequence[Image.Image], predictions: Sequence[Prediction], truths: Sequence[str] | None
) -> Image.Image:
    """Cards in rows, and above them how many are right."""
    columns = min(MOST_COLUMNS, math.ceil(math.sqrt(len(images) * 1.5)))
    rows = math.ceil(len(images) / columns)
    card_height = THUMBNAIL + 12 + LINE * (1 if truths is None else 2) + 8
    header = 0 if truths is None else 44
    width = 2 * MARGIN + columns * THUMBNAIL + (columns - 1) * GAP
    height = 2 * MARGIN + header + rows * card_height + (rows - 1) * GAP
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    if truths is not None:
        right = sum(prediction[0][0] == truth for prediction, truth in zip(predictions, truths, strict=True))
        draw.text((MARGIN, MARGIN - 4), f"{right} of {len(images)} right", fill=INK, font=font(24))
    for place, (image, prediction) in enumerate(zip(images, predictions, strict=True)):
        corner = (
            MARGIN + place % columns * (THUMBNAIL + GAP),
            MARGIN + header + place // columns * (card_height + GAP),
        )
        _card(picture, draw, corner, image, prediction, None if truths is None else truths[place])
    return picture


def _card(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    image: Image.Image,
    prediction: Prediction,
    truth: str | None,
) -> None:
    """An image, its class with a bar for the probability, and the true class if the prediction is wrong."""
    left, top = corner
    name, probability = prediction[0]
    colour = _colour(name, truth)
    picture.paste(_square(image, THUMBNAIL), corner)
    if truth is not None and name != truth:
        draw.rectangle((left - 3, top - 3, left + THUMBNAIL + 2, top + THUMBNAIL + 2), outline=WRONG, width=3)
    top += THUMBNAIL + 5
    _bar(draw, (left, top), THUMBNAIL, 5, probability, colour)
    top += 10
    indent = 0
    if truth is not None:
        _sign(draw, (left, top), right=name == truth)
        indent = 22
    _write(draw, (left + indent, top), name, THUMBNAIL - indent - 46, 15, INK)
    draw.text((left + THUMBNAIL, top), _percent(probability), fill=colour, font=font(15), anchor="ra")
    if truth is not None and name != truth:
        _write(draw, (left + indent, top + LINE), f"is: {truth}", THUMBNAIL - indent, 15, WRONG)


def _colour(name: str, truth: str | None) -> str:
    if truth is None:
        return UNJUDGED
    return RIGHT if name == truth else WRONG


def _square(image: Image.Image, side: int) -> Image.Image:
    """The whole image, scaled to fit a square."""
    image = image.convert("RGB")
    scale = side / max(image.size)
    size = tuple(max(1, round(length * scale)) for length in image.size)
    image = image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
    square = Image.new("RGB", (side, side), TRACK)
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def _bar(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], width: int, height: int, share: float, colour: str
) -> None:
    left, top = corner
    radius = height // 2
    draw.rounded_rectangle((left, top, left + width - 1, top + height - 1), radius, fill=TRACK)
    length = round(min(max(share, 0.0), 1.0) * width)
    if length > height:
        draw.rounded_rectangle((left, top, left + length - 1, top + height - 1), radius, fill=colour)
    elif length:
        draw.rectangle((left, top, left + length - 1, top + height - 1), fill=colour)


def _sign(draw: ImageDraw.ImageDraw, corner: tuple[int, int], *, right: bool) -> None:
    """A tick or a cross of 15 pixels, drawn as lines because not every font has them."""
    x, y = corner[0], corner[1] + 2
    if right:
        draw.line([(x + 1, y + 8), (x + 6, y + 13), (x + 14, y + 2)], fill=RIGHT, width=3, joint="curve")
    else:
        draw.line([(x + 2, y + 2), (x + 13, y + 13)], fill=WRONG, width=3)
        draw.line([(x + 2, y + 13), (x + 13, y + 2)], fill=WRONG, width=3)


def _write(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, width: int, size: int, colour: str) -> None:
    """Write one line, shortened to a width; letters that no font has are escaped."""
    drawn, letters = fitted(text, width, size)
    draw.text(corner, drawn, fill=colour, font=letters)


def _percent(probability: float) -> str:
    return f"{100 * probability:.0f} %"
