"""Cut a map into square windows and put it together again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.nn.order_table import concrete


def cut_windows(x: Tensor, size: int) -> Tensor:
    """Cut a map into windows, row by row, each a small map; zeros fill it up on the right and at the bottom.

    Used by MambaVision, whose mixers see the zeros as tokens like any other.

    Args:
        x: (batch, height, width, channels).
        size: side of a window, in positions.

    Returns:
        (batch * windows, size, size, channels), the windows of the first image first.

    >>> windows = cut_windows(torch.randn(2, 5, 7, 3), size=4)
    >>> windows.shape
    torch.Size([8, 4, 4, 3])
    >>> stitch_windows(windows, height=5, width=7).shape
    torch.Size([2, 5, 7, 3])
    """
    if size < 1:
        raise ValueError(f"size is {size}; expected the side of a window, at least 1 position")
    return _cut(x, size)


def stitch_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """The map that `cut_windows` cut, without the zeros that filled it up.

    Args:
        windows: (batch * windows, size, size, channels).
        height, width: of the map.

    Returns:
        (batch, height, width, channels).

    Raises:
        ValueError: the number of windows is not a multiple of those that such a map has.

    >>> x = torch.randn(2, 5, 7, 3)
    >>> torch.equal(stitch_windows(cut_windows(x, 4), 5, 7), x)
    True
    """
    return _stitched(windows, height, width)


# One node of a graph of torch.fx each. Wrapping holds for calls from this file only, so not for the public functions.


@torch.fx.wrap
def _cut(x: Tensor, size: int) -> Tensor:
    below, right = (-concrete(length) % size for length in x.shape[1:3])
    if below or right:
        x = F.pad(x, (0, 0, 0, right, 0, below))
    rows, columns = x.shape[1] // size, x.shape[2] // size
    return x.unflatten(2, (columns, size)).unflatten(1, (rows, size)).transpose(2, 3).flatten(0, 2)


@torch.fx.wrap
def _stitched(windows: Tensor, height: int, width: int) -> Tensor:
    size = windows.shape[1]
    rows, columns = -(-height // size), -(-width // size)
    if windows.shape[0] % (rows * columns):
        raise ValueError(
            f"there are {windows.shape[0]} windows of {size} x {size}; expected a multiple of {rows * columns}, the "
            f"number in a map of {height} x {width}: pass the height and width of the map that was cut"
        )
    x = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, :height, :width]
