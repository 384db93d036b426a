"""Absolute positions resized, and what rotary ones refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vssm.nn import Attention, RotaryPosition, resize_position


@pytest.mark.parametrize("grid", [(12, 10), (4, 9), (1, 2)])
def test_rows_are_a_map_resized_and_the_class_token_keeps_the_middle(grid: tuple[int, int]) -> None:
    rows, class_row = torch.randn(1, 6 * 5, 8), torch.randn(1, 1, 8)
    as_map = rows.view(1, 6, 5, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(as_map, grid, mode="bicubic", antialias=True).flatten(2).mT
    torch.testing.assert_close(resize_position(rows, (6, 5), *grid), expected)

    middle = grid[0] * grid[1] // 2
    with_class = torch.cat([rows[:, :15], class_row, rows[:, 15:]], 1)
    expected = torch.cat([expected[:, :middle], class_row, expected[:, middle:]], 1)
    torch.testing.assert_close(resize_position(with_class, (6, 5), *grid), expected)


def test_the_same_grid_gives_the_same_tensor() -> None:
    position = torch.randn(1, 31, 8)
    assert resize_position(position, (6, 5), 6, 5) is position


def test_rows_that_are_not_of_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="has 29 rows; expected 30 for a grid of 6 x 5"):
        resize_position(torch.randn(1, 29, 8), (6, 5), 12, 10)


def test_channels_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 6 channels; expected a multiple of 4"):
        RotaryPosition(6)
    with pytest.raises(ValueError, match="3 heads share 8 channels"):
        Attention(8, heads=3)


def test_rotated_products_depend_on_the_distance_alone() -> None:
    """What rotary positions are for: moving query and key together leaves their product as it is."""
    rotary = RotaryPosition(8)
    query, key = (torch.randn(8).expand(1, 6, 7, 8) for _ in range(2))
    turned_query, turned_key = rotary(query)[0], rotary(key)[0]
    products = [turned_query[row, column] @ turned_key[row + 2, column + 1] for row, column in ((0, 0), (3, 1), (2, 5))]
    torch.testing.assert_close(torch.stack(products), products[0].expand(3))
