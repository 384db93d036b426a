"""Scan orders as data: tables of token indices, made by index arithmetic alone.

    from vssm.scan import cross
    cross(14, 14).table          # (4, 196) int32: the token that direction k visits at step l

A new order is one file in vssm/scan/orders/ with one function (height, width) -> ScanOrder, decorated by @scan_order.
"""

from vssm.scan.combine import (
    backwards,
    chain,
    flipped,
    insert_token,
    place_of_class_token,
    stack,
    with_class_token,
    with_padding_tokens,
)
from vssm.scan.order import (
    OrderFunction,
    OrderWithNumber,
    ScanOrder,
    order_named,
    order_names,
    scan_order,
    scan_order_with,
)
from vssm.scan.orders import (
    atrous,
    bidirectional,
    columns,
    cross,
    diagonal,
    diagonal_zigzag,
    hilbert,
    local,
    random,
    raster,
    spiral,
    windows,
    zigzag,
)
from vssm.scan.resolve import OrderLike, resolve_order

__all__ = [
    "OrderFunction",
    "OrderLike",
    "OrderWithNumber",
    "ScanOrder",
    "atrous",
    "backwards",
    "bidirectional",
    "chain",
    "columns",
    "cross",
    "diagonal",
    "diagonal_zigzag",
    "flipped",
    "hilbert",
    "insert_token",
    "local",
    "order_named",
    "order_names",
    "place_of_class_token",
    "random",
    "raster",
    "resolve_order",
    "scan_order",
    "scan_order_with",
    "spiral",
    "stack",
    "windows",
    "with_class_token",
    "with_padding_tokens",
    "zigzag",
]
