"""Scan orders as data: tables of token indices, made by index arithmetic alone.

    from vssm.scan import cross
    cross(14, 14).table          # (4, 196) int32: the token that direction k visits at step l

A new order is one file in vssm/scan/orders/ with one function (height, width) -> ScanOrder, decorated by @scan_order.
"""

from vssm.scan.combine import chain, flipped, insert_token, stack
from vssm.scan.order import OrderFunction, ScanOrder, order_named, order_names, remembered, scan_order
from vssm.scan.orders import atrous, bidirectional, columns, cross, raster

__all__ = [
    "OrderFunction",
    "ScanOrder",
    "atrous",
    "bidirectional",
    "chain",
    "columns",
    "cross",
    "flipped",
    "insert_token",
    "order_named",
    "order_names",
    "raster",
    "remembered",
    "scan_order",
    "stack",
]
