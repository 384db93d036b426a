import torch
from torch import Tensor

from vssm.scan.combine import flipped, stack
from vssm.scan.order import ScanOrder, scan_order


@scan_order
def diagonal(height: int, width: int) -> ScanOrder:
    """Diagonals from the top left corner, diagonals from the top right one, and both backwards.

    These are the diagonal directions of the omnidirectional scan of RS-Mamba (arXiv 2404.02668); ["cross",
    "diagonal"] has all eight.
    """
    grid = torch.arange(height * width).view(height, width)
    forwards = ScanOrder(torch.stack([walk_diagonals(grid), walk_diagonals(grid.flip(1))]), height * width)
    return stack(forwards, flipped(forwards))


def walk_diagonals(grid: Tensor) -> Tensor:
    """The entries of a grid diagonal after diagonal, each from its upper right to its lower left end."""
    height, width = grid.shape
    diagonals = torch.arange(height)[:, None] + torch.arange(width)
    return grid.flatten()[diagonals.flatten().argsort(stable=True)]
