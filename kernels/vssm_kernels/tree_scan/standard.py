"""The scan of a tree in standard operations: as the reference, with the vertices of all images in one dimension.

A runtime's gather along one dimension copies rows; the reference's, which any mode of torch takes, has two indices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.grid_tree.reference import rounds
from vssm_kernels.tree_scan.arguments import TreeScanArguments
from vssm_kernels.tree_scan.reference import added_and_weight


def scan(args: TreeScanArguments) -> Tensor:
    """(batch, tokens, channels), in float32 at least."""
    batch, tokens, _ = args.u.shape
    added, weight = (rows.flatten(0, 1) for rows in added_and_weight(args))
    vertex, parent = args.tree[:, 0].long(), args.tree[:, 1].long()
    parent = torch.zeros_like(parent).scatter(1, vertex, parent)
    weight = torch.where((parent < 0).flatten().unsqueeze(-1), 0, weight)  # the root hands nothing on
    first = tokens * torch.arange(batch, device=args.device).unsqueeze(1)  # row of an image
    above = (parent.clamp(min=0) + first).flatten()

    pointers = [(weight, above)]  # one step up, two, four ...
    for _ in range(rounds(tokens) - 1):
        weight, above = pointers[-1]
        pointers.append((weight * F.embedding(above, weight), above.index_select(0, above)))
    for weight, above in pointers:
        added = added.index_put((above,), weight * added, accumulate=True)
    h = added * (1 - pointers[0][0].square())
    for weight, above in pointers:
        h = h + weight * F.embedding(above, h)
    return h.unflatten(0, (batch, tokens))
