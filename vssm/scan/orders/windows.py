from vssm.scan.combine import flipped, stack
from vssm.scan.order import ScanOrder, scan_order_with
from vssm.scan.orders.local import local


@scan_order_with(default=7, least=1, most=1024)
def windows(size: int, height: int, width: int) -> ScanOrder:
    """Window after window, row by row inside; and backwards: two of the directions of LocalMamba (arXiv 2403.09338)."""
    forwards = local(size)(height, width)
    return stack(forwards, flipped(forwards))
