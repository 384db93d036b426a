"""The picture of an order: every registered one can be drawn, with its start and its empty steps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vssm.scan import ScanOrder, cross, order_named, order_names, raster, windows
from vssm.viz import draw_order
from vssm.viz.orders import CELL, TIMELINE, _panel, _timeline


def pixels(order: ScanOrder, height: int, width: int) -> np.ndarray:
    return np.asarray(_panel(order.table[0].numpy(), height, width))


@pytest.mark.parametrize("name", order_names())
@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (4, 3)])
def test_every_order_on_every_grid(tmp_path: Path, name: str, grid: tuple[int, int]) -> None:
    file = draw_order(order_named(name)(*grid), *grid, name, path=tmp_path / "new" / "order.png")
    with Image.open(file) as picture:
        assert picture.format == "PNG" and picture.height > grid[0] * CELL


def test_directions_stand_side_by_side(tmp_path: Path) -> None:
    widths = [
        Image.open(draw_order(order(4, 4), 4, 4, "", path=tmp_path / "order.png")).width for order in (raster, cross)
    ]
    assert widths[1] > 3 * widths[0]


def test_colours_tell_early_from_late() -> None:
    """Corners of cells, where no line is drawn: blue at the beginning, red at the end."""
    picture = pixels(raster(4, 4), 4, 4).astype(int)
    first, last = picture[3, 3], picture[3 * CELL + 3, 3 * CELL + 3]
    assert first[2] > first[0] and last[0] > last[2]


def test_empty_steps_are_grey_in_the_row_of_steps() -> None:
    def grey_share(order: ScanOrder) -> float:
        row = np.asarray(_timeline(order.table[0].numpy(), 4 * order.steps)).astype(int)
        assert row.shape[0] == TIMELINE
        return float((np.ptp(row[0], axis=-1) < 20).mean())

    assert grey_share(windows(2)(4, 4)) == 0
    assert grey_share(windows(4)(3, 4)) == pytest.approx(4 / 16)


def test_a_token_never_visited_is_pale() -> None:
    order = ScanOrder(torch.tensor([[0, 1, 2]]), tokens=4)
    assert np.ptp(pixels(order, 2, 2)[CELL + 4, CELL + 4].astype(int)) < 15


def test_an_order_of_another_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="walks 16 tokens; a grid of 4 x 5 has 20"):
        draw_order(raster(4, 4), 4, 5, "raster", path=tmp_path / "order.png")
