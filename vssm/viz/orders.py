"""Pictures of scan orders: the path of each direction over its grid."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vssm.scan import ScanOrder
from vssm.viz.style import EARLY_TO_LATE, GAP, INK, MARGIN, PALE, PAPER, colours, font, save

CELL = 22
TITLE, CAPTION, TIMELINE = 38, 22, 8
# Lines are drawn this many times larger and then shrunk, because PIL does not smooth edges.
FINE = 3
UNVISITED = (234, 238, 242)


def draw_order(order: ScanOrder, height: int, width: int, title: str, *, path: str | Path) -> Path:
    """Write a PNG of an order's directions side by side.

    Cells are coloured by the step that visits them, from blue to red. The line is the path, from a dot to a square:
    thin where it jumps to a token that is no neighbour, dashed where it passes empty steps. Below the grid all steps
    are shown in a row, empty ones in grey.

    Args:
        order: of a grid of height x width tokens.
        title: written above.
        path: of the file to write; its folder is made.

    Returns:
        The path.

    Raises:
        ValueError: the order is not one of such a grid.

    >>> import tempfile
    >>> from vssm.scan import cross
    >>> file = draw_order(cross(4, 4), 4, 4, "cross", path=Path(tempfile.mkdtemp()) / "cross.png")
    >>> Image.open(file).size
    (454, 196)
    """
    if order.tokens != height * width:
        raise ValueError(f"the order walks {order.tokens} tokens; a grid of {height} x {width} has {height * width}")
    panels = [_panel(row.numpy(), height, width) for row in order.table]
    panel_width, panel_height = panels[0].size
    columns = len(panels)
    picture = Image.new(
        "RGB", (2 * MARGIN + columns * (panel_width + GAP) - GAP, 2 * MARGIN + TITLE - 16 + panel_height), PAPER
    )
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN - 10), title, fill=INK, font=font(18))
    for place, panel in enumerate(panels):
        picture.paste(panel, (MARGIN + place * (panel_width + GAP), MARGIN + TITLE - 16))
    return save(picture, path, palette=128)


def _panel(row: np.ndarray, height: int, width: int) -> Image.Image:
    """One direction: its grid, its steps in a row, and their number."""
    grid = _grid(row, height, width)
    panel = Image.new("RGB", (grid.width, grid.height + 8 + TIMELINE + CAPTION), PAPER)
    panel.paste(grid, (0, 0))
    panel.paste(_timeline(row, grid.width), (0, grid.height + 8))
    empty = int((row < 0).sum())
    caption = f"{len(row)} steps" + (f", {empty} empty" if empty else "")
    ImageDraw.Draw(panel).text((0, grid.height + 8 + TIMELINE + 5), caption, fill=PALE, font=font(12))
    return panel


def _grid(row: np.ndarray, height: int, width: int) -> Image.Image:
    cells = np.full((height * width, 3), UNVISITED, dtype=np.uint8)
    visited = np.flatnonzero(row >= 0)
    cells[row[visited]] = colours(visited / max(len(row) - 1, 1), EARLY_TO_LATE)
    size = CELL * FINE
    picture = Image.fromarray(cells.reshape(height, width, 3)).resize(
        (width * size, height * size), Image.Resampling.NEAREST
    )
    draw = ImageDraw.Draw(picture)
    for line in range(1, height):
        draw.line((0, line * size, width * size, line * size), fill=PAPER, width=FINE)
    for line in range(1, width):
        draw.line((line * size, 0, line * size, height * size), fill=PAPER, width=FINE)
    _walk(draw, row, visited, width)
    return picture.resize((width * CELL, height * CELL), Image.Resampling.LANCZOS)


def _walk(draw: ImageDraw.ImageDraw, row: np.ndarray, visited: np.ndarray, width: int) -> None:
    """The line from token to token, with a dot at its start and a square at its end."""

    def centre(step: int) -> tuple[float, float]:
        token = int(row[step])
        return (token % width + 0.5) * CELL * FINE, (token // width + 0.5) * CELL * FINE

    for step, after in pairwise(visited):
        start, end = centre(step), centre(after)
        near = max(abs(start[0] - end[0]), abs(start[1] - end[1])) <= CELL * FINE
        if after - step > 1:
            _dashed(draw, start, end)
        else:
            draw.line((start, end), fill=INK if near else PALE, width=2 * FINE if near else FINE)
    if not len(visited):  # on a very small grid a direction may have only empty steps
        return
    (x, y), radius = centre(visited[0]), 5 * FINE
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=INK)
    x, y = centre(visited[-1])
    draw.rectangle((x - radius, y - radius, x + radius, y + radius), fill=PAPER, outline=INK, width=2 * FINE)


def _dashed(draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float]) -> None:
    (x0, y0), (x1, y1) = start, end
    dashes = max(2, round(max(abs(x1 - x0), abs(y1 - y0)) / (3.5 * FINE)))
    for dash in range(0, dashes, 2):
        here, there = dash / dashes, (dash + 1) / dashes
        points = [(x0 + (x1 - x0) * at, y0 + (y1 - y0) * at) for at in (here, there)]
        draw.line(points, fill=INK, width=FINE)


def _timeline(row: np.ndarray, width: int) -> Image.Image:
    """The steps in a row, coloured as in the grid; empty ones grey."""
    steps = colours(np.arange(len(row)) / max(len(row) - 1, 1), EARLY_TO_LATE)
    steps[row < 0] = [int(PALE[i : i + 2], 16) for i in (1, 3, 5)]
    pixels = steps[np.arange(width) * len(row) // width]
    return Image.fromarray(np.repeat(pixels[None], TIMELINE, axis=0))
