from vssm.scan.combine import flipped, stack
from vssm.scan.order import ScanOrder, scan_order
from vssm.scan.orders.columns import columns
from vssm.scan.orders.raster import raster


@scan_order
def cross(height: int, width: int) -> ScanOrder:
    """Rows, columns, and both backwards: the cross-scan of VMamba (arXiv 2401.10166)."""
    forwards = stack(raster(height, width), columns(height, width))
    return stack(forwards, flipped(forwards))
