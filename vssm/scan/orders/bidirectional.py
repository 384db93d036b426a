from vssm.scan.combine import flipped, stack
from vssm.scan.order import ScanOrder, scan_order
from vssm.scan.orders.raster import raster


@scan_order
def bidirectional(height: int, width: int) -> ScanOrder:
    """Rows forwards and backwards, as in Vim (arXiv 2401.09417)."""
    return stack(raster(height, width), flipped(raster(height, width)))
