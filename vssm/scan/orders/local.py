import torch
from torch import Tensor

from vssm.scan.order import check_cells, scan_order_with


@scan_order_with(default=7, least=1, most=1024)
def local(size: int, height: int, width: int) -> Tensor:
    """Window after window, row by row inside: a direction of the local scan of LocalMamba (arXiv 2403.09338).

    Windows are size x size tokens, from the top left. Where `size` does not divide the grid, windows extend beyond its
    right and lower edges, with empty steps there; the official code pads with zeros.
    """
    check_cells(f"local({size})", height + -height % size, width + -width % size)
    grid = torch.arange(height * width).view(height, width)
    return walk_windows(torch.nn.functional.pad(grid, (0, -width % size, 0, -height % size), value=-1), size)[None]


def walk_windows(grid: Tensor, size: int) -> Tensor:
    """The entries of a grid whose sides `size` divides, window after window."""
    rows, columns = grid.shape[0] // size, grid.shape[1] // size
    return grid.view(rows, size, columns, size).transpose(1, 2).flatten()
