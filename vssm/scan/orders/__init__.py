"""One small file per order; importing this package registers them all."""

from vssm.scan.orders.atrous import atrous
from vssm.scan.orders.bidirectional import bidirectional
from vssm.scan.orders.columns import columns
from vssm.scan.orders.cross import cross
from vssm.scan.orders.raster import raster

__all__ = ["atrous", "bidirectional", "columns", "cross", "raster"]
