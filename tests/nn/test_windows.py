"""Windows of a map: what is in each, and the way back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vssm.nn import cut_windows, stitch_windows

CASES = [(6, 8, 2), (5, 7, 4), (3, 2, 7), (1, 9, 3), (7, 7, 7), (14, 10, 5)]


@pytest.mark.parametrize(("height", "width", "size"), CASES)
def test_each_window_is_a_slice_of_the_padded_map_and_stitching_is_exact(height: int, width: int, size: int) -> None:
    x = torch.randn(2, height, width, 3).requires_grad_()
    windows = cut_windows(x, size)
    padded = F.pad(x, (0, 0, 0, size, 0, size))
    starts = [(row, column) for row in range(0, height, size) for column in range(0, width, size)]
    expected = [image[row : row + size, column : column + size] for image in padded for row, column in starts]
    assert torch.equal(windows, torch.stack(expected))
    stitched = stitch_windows(windows, height, width)
    assert torch.equal(stitched, x)
    weights = torch.randn_like(x)
    assert torch.equal(torch.autograd.grad((stitched * weights).sum(), x)[0], weights)


def test_stitching_to_another_size_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"there are 4 windows of 4 x 4; expected a multiple of 6"):
        stitch_windows(cut_windows(torch.randn(1, 5, 7, 3), 4), 5, 9)


@pytest.mark.parametrize("size", [0, -2])
def test_windows_without_positions_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size is {size}; expected the side of a window"):
        cut_windows(torch.randn(1, 5, 7, 3), size)
