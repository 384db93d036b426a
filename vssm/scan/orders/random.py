from random import Random

import torch

from vssm.scan.combine import flipped, stack
from vssm.scan.order import ScanOrder, scan_order_with


@scan_order_with(default=0)
def random(seed: int, height: int, width: int) -> ScanOrder:
    """Two random walks over all tokens, and both backwards: a baseline that ignores neighbourhood.

    The walks depend on the seed and the grid only, not on machine or versions: tokens are sorted by numbers from
    Python's generator, whose sequence for a seed is guaranteed. Four directions, like `cross`.
    """
    generator = Random(seed)
    tokens = range(height * width)
    walks = []
    for _ in range(2):
        draws = [generator.random() for _ in tokens]
        walks.append(sorted(tokens, key=draws.__getitem__))
    forwards = ScanOrder(torch.tensor(walks), height * width)
    return stack(forwards, flipped(forwards))
