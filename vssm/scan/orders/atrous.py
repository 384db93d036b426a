from functools import partial

import torch

from vssm.scan.combine import stack
from vssm.scan.order import OrderFunction, ScanOrder, remembered


def atrous(step: int) -> OrderFunction:
    """Every `step`-th token of every `step`-th row: step x step disjoint sub-grids, one direction each.

    The atrous scan of EfficientVMamba (arXiv 2403.09977). A sub-grid that begins on an even row is walked row by row,
    one that begins on an odd row column by column, as there. Where the grid's sides are no multiples of `step`, the
    sub-grids have empty steps in the places of the missing tokens, so that all are equally long.

    Args:
        step: distance of neighbours on a sub-grid, in tokens.

    Returns:
        The order, a function (height, width) -> ScanOrder.

    >>> atrous(2)(3, 4).table
    tensor([[ 0,  2,  8, 10],
            [ 4, -1,  6, -1],
            [ 1,  3,  9, 11],
            [ 5, -1,  7, -1]], dtype=torch.int32)
    """
    if step < 1:
        raise ValueError(f"the step of an atrous scan is {step}; expected at least 1")
    return partial(_sub_grids, step)


@remembered
def _sub_grids(step: int, height: int, width: int) -> ScanOrder:
    if height < 1 or width < 1:
        raise ValueError(f"scan order 'atrous' needs a grid of at least 1 x 1 tokens; got {height} x {width}")
    grid = torch.arange(height * width).view(height, width)
    grid = torch.nn.functional.pad(grid, (0, -width % step, 0, -height % step), value=-1)
    walks = []
    for column in range(step):
        for row in range(step):
            tokens = grid[row::step, column::step]
            walks.append(ScanOrder((tokens.T if row % 2 else tokens).reshape(1, -1), height * width))
    return stack(*walks)
