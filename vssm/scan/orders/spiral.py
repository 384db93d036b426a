import torch
from torch import Tensor

from vssm.scan.combine import flipped, stack
from vssm.scan.order import ScanOrder, scan_order


@scan_order
def spiral(height: int, width: int) -> ScanOrder:
    """Clockwise from the top left corner inwards, and from the middle outwards."""
    inwards = ScanOrder(walk_spiral(torch.arange(height * width).view(height, width))[None], height * width)
    return stack(inwards, flipped(inwards))


def walk_spiral(grid: Tensor) -> Tensor:
    """The entries of a grid along its border, then along the border of the rest, and so on."""
    sides = []
    while grid.numel():
        sides.append(grid[0])
        grid = grid[1:].T.flip(0)  # turned, so that the next side is on top
    return torch.cat(sides)
