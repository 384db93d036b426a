import torch
from torch import Tensor

from vssm.scan.combine import flipped, stack
from vssm.scan.order import ScanOrder, scan_order


@scan_order
def diagonal_zigzag(height: int, width: int) -> ScanOrder:
    """Snakes along the diagonals, from the top left corner and from the top right one, both ways.

    The diagonal head of MHS-VM (arXiv 2406.05992). Every second diagonal is walked upwards, so that every step goes to
    a neighbour. Four directions, in the order of `zigzag`: a snake, the same backwards, the other, backwards.
    """
    grid = torch.arange(height * width).view(height, width)
    snakes = [ScanOrder(walk_diagonal_snake(each)[None], height * width) for each in (grid, grid.flip(1))]
    return stack(*(way for snake in snakes for way in (snake, flipped(snake))))


def walk_diagonal_snake(grid: Tensor) -> Tensor:
    """The entries of a grid diagonal after diagonal, the first, third, ... upwards and the others downwards."""
    height, width = grid.shape
    rows, diagonals = torch.arange(height)[:, None], torch.arange(height)[:, None] + torch.arange(width)
    place = torch.where(diagonals % 2 == 1, rows, height - 1 - rows)
    return grid.flatten()[(diagonals * height + place).flatten().argsort()]
