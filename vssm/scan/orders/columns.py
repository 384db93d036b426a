import torch
from torch import Tensor

from vssm.scan.order import scan_order


@scan_order
def columns(height: int, width: int) -> Tensor:
    """Column after column, top to bottom."""
    return torch.arange(height * width).view(height, width).T.reshape(1, -1)
