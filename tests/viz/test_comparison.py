"""The picture of a comparison shows scores and costs at the right places."""

import numpy as np
import pytest
from PIL import Image

from vssm.viz import draw_comparison
from vssm.viz.comparison import COST, HEADS, LABELS, ROW, SCORES, TITLE, axis
from vssm.viz.style import GAP, INK, MARGIN


def darkness(path, row: int, left: int, width: int) -> np.ndarray:
    """How dark each column of a model's line is, in one part of the picture."""
    picture = np.asarray(Image.open(path).convert("L")).astype(int)
    top = MARGIN + TITLE + HEADS + row * ROW
    return (255 - picture[top + 3 : top + ROW - 3, left : left + width]).sum(0)


def test_a_better_model_stands_further_right(tmp_path):
    scores = {"worse": [80.0, 81.0], "better": [95.0, 96.0]}
    path = draw_comparison(scores, {}, "two", path=tmp_path / "new" / "picture.png")
    places = [darkness(path, row, MARGIN + LABELS, SCORES).argmax() for row in (0, 1)]
    assert places[1] - places[0] > SCORES / 2


def test_a_dot_for_each_seed_and_a_line_for_their_mean(tmp_path):
    path = draw_comparison({"a": [80.0, 82.0, 90.0]}, {}, "one", path=tmp_path / "picture.png")
    picture = Image.open(path).convert("RGB").crop((MARGIN + LABELS, 0, MARGIN + LABELS + SCORES, 200))
    ink = np.abs(np.asarray(picture).astype(int) - [int(INK[i : i + 2], 16) for i in (1, 3, 5)]).sum(-1) < 30
    columns = np.flatnonzero(ink[MARGIN + TITLE + HEADS : MARGIN + TITLE + HEADS + ROW].any(0))
    low, high, _ = axis(80, 90)
    assert columns.mean() == pytest.approx(14 + (84 - low) / (high - low) * (SCORES - 28), abs=2)


def test_a_bar_is_as_long_as_its_number(tmp_path):
    costs = {"images/s": {"a": 500.0, "b": 1000.0}}
    path = draw_comparison({"a": [80.0], "b": [80.0]}, costs, "two", path=tmp_path / "picture.png")
    left = MARGIN + LABELS + SCORES + GAP
    middle = MARGIN + TITLE + HEADS + ROW // 2 + 5  # below the text's middle, still within the bar
    pixels = np.asarray(Image.open(path).convert("RGB"))
    lengths = []
    for row in (0, 1):
        line = pixels[middle + row * ROW, left : left + COST]
        lengths.append(int((line == line[0]).all(-1).cumprod().sum()))
    assert lengths[1] == pytest.approx(2 * lengths[0], abs=2) and lengths[0] > 20


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(12.0, 12.0, (11.5, 12.5, 0.5)), (0, 100, (0, 100, 20)), (88.3, 97.9, (88, 98, 2))]
)
def test_axis_has_round_ends(low, high, expected):
    assert axis(low, high) == expected


@pytest.mark.parametrize("scores", [{}, {"a": []}])
def test_nothing_to_compare(scores, tmp_path):
    with pytest.raises(ValueError, match="at least one score"):
        draw_comparison(scores, {}, "none", path=tmp_path / "picture.png")
