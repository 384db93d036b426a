import torch

from vssm.scan.combine import stack
from vssm.scan.order import ScanOrder, check_cells, scan_order_with


@scan_order_with(default=2, least=1, most=64)
def atrous(step: int, height: int, width: int) -> ScanOrder:
    """Every `step`-th token of every `step`-th row: step x step disjoint sub-grids, one direction each.

    The atrous scan of EfficientVMamba (arXiv 2403.09977). A sub-grid that begins on an even row is walked row by row,
    one that begins on an odd row column by column, as in the official code. Where `step` does not divide the grid, the
    sub-grids have empty steps in place of the missing tokens, so that all have the same length.
    """
    check_cells(f"atrous({step})", height + -height % step, width + -width % step)
    grid = torch.arange(height * width).view(height, width)
    grid = torch.nn.functional.pad(grid, (0, -width % step, 0, -height % step), value=-1)
    walks = []
    for column in range(step):
        for row in range(step):
            tokens = grid[row::step, column::step]
            walks.append(ScanOrder((tokens.T if row % 2 else tokens).reshape(1, -1), height * width))
    return stack(*walks)
