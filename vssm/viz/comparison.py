"""A picture that compares models: a dot for each training, a line at their mean, bars for the costs of each model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from vssm.viz.style import EARLY_TO_LATE, GAP, INK, MARGIN, PALE, PAPER, TRACK, font, save

LABELS, SCORES, COST, ROW = 230, 320, 130, 34
TITLE, HEADS, TICKS = 40, 26, 26
BLUE = EARLY_TO_LATE[0]
# Dots are drawn this many times larger and then shrunk, because PIL does not smooth edges.
FINE = 4


def draw_comparison(
    scores: Mapping[str, Sequence[float]],
    costs: Mapping[str, Mapping[str, float]],
    title: str,
    *,
    path: str | Path,
) -> Path:
    """Write a PNG with one row per model.

    Args:
        scores: for each model's label its top-1 accuracies in percent, one per seed.
        costs: for each column heading the number of each label, such as images per second.
        title: written above.
        path: of the file to write; its folder is made.

    Returns:
        The path.

    Raises:
        ValueError: nothing to compare, or a model without a score.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "comparison.png"
    >>> draw_comparison({"a": [90.0, 92.0], "b": [95.0]}, {"images/s": {"a": 10, "b": 20}}, "two", path=file) == file
    True
    """
    if not scores or not all(scores.values()):
        raise ValueError("a comparison needs models, each with at least one score")
    width = 2 * MARGIN + LABELS + SCORES + len(costs) * (GAP + COST)
    top = MARGIN + TITLE + HEADS
    picture = Image.new("RGB", (width, top + ROW * len(scores) + TICKS + MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN - 6), title, fill=INK, font=font(18))
    for row, label in enumerate(scores):
        draw.text((MARGIN, top + row * ROW + ROW // 2), label, fill=INK, font=font(14), anchor="lm")
    left = MARGIN + LABELS
    draw.text((left, top - HEADS), "top-1 in %: each seed, and the mean", fill=PALE, font=font(12))
    picture.paste(_dots(list(scores.values())), (left, top))
    left += SCORES
    for head, numbers in costs.items():
        left += GAP
        draw.text((left, top - HEADS), head, fill=PALE, font=font(12))
        _bars(draw, (left, top), [numbers[label] for label in scores])
        left += COST
    return save(picture, path, palette=64)


def _dots(scores: list[Sequence[float]]) -> Image.Image:
    """One row per model on a common axis, with ticks below."""
    low, high, step = axis(min(map(min, scores)), max(map(max, scores)))
    height = ROW * len(scores)
    panel = Image.new("RGB", (SCORES * FINE, (height + TICKS) * FINE), PAPER)
    draw = ImageDraw.Draw(panel)
    margin = 14 * FINE

    def place(score: float) -> float:
        return margin + (score - low) / (high - low) * (SCORES * FINE - 2 * margin)

    ticks = [low + step * i for i in range(round((high - low) / step) + 1)]
    for tick in ticks:
        draw.line((place(tick), 0, place(tick), height * FINE), fill=TRACK, width=FINE)
    for row, values in enumerate(scores):
        y = (row * ROW + ROW / 2) * FINE
        mean, half, radius = sum(values) / len(values), 11 * FINE, 5 * FINE
        draw.line((place(min(values)), y, place(max(values)), y), fill=BLUE, width=2 * FINE)
        for value in values:
            x = place(value)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=BLUE, outline=PAPER, width=FINE)
        draw.line((place(mean), y - half, place(mean), y + half), fill=INK, width=2 * FINE)
    panel = panel.resize((SCORES, height + TICKS), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(panel)
    for tick in ticks:
        draw.text((place(tick) / FINE, height + 6), f"{tick:g}", fill=PALE, font=font(12), anchor="ma")
    return panel


def _bars(draw: ImageDraw.ImageDraw, corner: tuple[int, int], numbers: list[float]) -> None:
    """One bar per model, starting at zero, with its number beside it."""
    left, top = corner
    room = COST - 52
    for row, number in enumerate(numbers):
        y = top + row * ROW + ROW // 2
        length = max(2, round(room * number / max(numbers)))
        draw.rectangle((left, y - 6, left + length, y + 6), fill=BLUE)
        text = f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
        draw.text((left + length + 6, y), text, fill=INK, font=font(12), anchor="lm")


def axis(low: float, high: float) -> tuple[float, float, float]:
    """Round ends and a round step of an axis that shows numbers from low to high.

    >>> axis(91.2, 96.9)
    (91, 97, 1)
    >>> axis(50, 50)
    (49.5, 50.5, 0.5)
    """
    span = max(high - low, 1.0)
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 50, 100) if span / step <= 7)
    first, last = math.floor(low / step) * step, math.ceil(high / step) * step
    return (first, last, step) if first < last else (first - step, last + step, step)
