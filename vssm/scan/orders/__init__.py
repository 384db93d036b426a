"""One small file per order; importing this package registers them all."""

from vssm.scan.orders.atrous import atrous
from vssm.scan.orders.bidirectional import bidirectional
from vssm.scan.orders.columns import columns
from vssm.scan.orders.cross import cross
from vssm.scan.orders.diagonal import diagonal
from vssm.scan.orders.diagonal_zigzag import diagonal_zigzag
from vssm.scan.orders.hilbert import hilbert
from vssm.scan.orders.local import local
from vssm.scan.orders.random import random
from vssm.scan.orders.raster import raster
from vssm.scan.orders.spiral import spiral
from vssm.scan.orders.windows import windows
from vssm.scan.orders.zigzag import zigzag

__all__ = [
    "atrous",
    "bidirectional",
    "columns",
    "cross",
    "diagonal",
    "diagonal_zigzag",
    "hilbert",
    "local",
    "random",
    "raster",
    "spiral",
    "windows",
    "zigzag",
]
