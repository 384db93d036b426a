import torch
from torch import Tensor

from vssm.scan.order import scan_order


@scan_order
def raster(height: int, width: int) -> Tensor:
    """Row after row, left to right."""
    return torch.arange(height * width)[None]
