import torch
from torch import Tensor

from vssm.scan.combine import flipped, stack
from vssm.scan.order import ScanOrder, scan_order


@scan_order
def hilbert(height: int, width: int) -> ScanOrder:
    """A Hilbert curve from the top left to the top right, one to the bottom left, and both backwards.

    Generalised to any grid: an oblong grid is halved, instead of cut out of a larger square, so that every step goes to
    a neighbour, at most one of them diagonally. Four directions, so it can replace `cross` with the same parameters.
    """
    grid = torch.arange(height * width).view(height, width)
    curves = torch.stack([walk_hilbert(grid), walk_hilbert(grid.T)])
    forwards = ScanOrder(curves, height * width)
    return stack(forwards, flipped(forwards))


def walk_hilbert(grid: Tensor) -> Tensor:
    """The entries of a grid along a curve from its top left to its top right corner."""
    height, width = grid.shape
    if height == 1 or width == 1:
        return grid.flatten()
    if 2 * width > 3 * height:  # a wide grid: two halves, one after the other
        half = _even(width // 2, width)
        return torch.cat([walk_hilbert(grid[:, :half]), walk_hilbert(grid[:, half:])])
    # Down the upper left quarter, along the lower half, and up the upper right quarter.
    top, half = _even(height // 2, height), width // 2
    down = grid[:top, :half].T
    up = grid[:top, half:].flip(0, 1).T
    return torch.cat([walk_hilbert(down), walk_hilbert(grid[top:]), walk_hilbert(up)])


def _even(half: int, whole: int) -> int:
    """An even part leaves the curve at the corner where the next part begins."""
    return half + half % 2 if whole > 2 else half
