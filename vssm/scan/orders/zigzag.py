import torch
from torch import Tensor

from vssm.scan.combine import flipped, stack
from vssm.scan.order import ScanOrder, scan_order


@scan_order
def zigzag(height: int, width: int) -> ScanOrder:
    """Four snakes, along rows and along columns, both ways: the continuous scan of PlainMamba (arXiv 2403.17695)."""
    grid = torch.arange(height * width).view(height, width)
    snakes = [ScanOrder(walk_snake(lines)[None], height * width) for lines in (grid, grid.T)]
    return stack(*(way for snake in snakes for way in (snake, flipped(snake))))


def walk_snake(grid: Tensor) -> Tensor:
    """The entries of a grid row after row, every second one backwards."""
    grid = grid.clone()
    grid[1::2] = grid[1::2].flip(1)
    return grid.flatten()
