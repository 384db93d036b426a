"""The scan of a tree in plain torch, all vertices at once: pointers to parents are followed by doubling.

A sweep up adds to every vertex what its children hand on: sums = u + M u + M (M u) + ..., where M takes a number to the
parent, times the weight of the edge. That is ... (1 + M^4) (1 + M^2) (1 + M) u, and M^2 takes it to the parent of the
parent, times both weights. A sweep down reads along the same pointers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vssm_kernels.dispatch import reference_backend
from vssm_kernels.grid_tree.reference import rounds
from vssm_kernels.standard import softplus
from vssm_kernels.tree_scan.arguments import TreeScanArguments

# Weights, and images and vertices, one step up, two, four ... Rows are read and added to by index: where several meet,
# their sum has a fixed order on a GPU, as that of gather and scatter_add has not.
Pointers = list[tuple[Tensor, tuple[Tensor, Tensor]]]


def scan(args: TreeScanArguments, save: bool = False) -> tuple[Tensor, None]:
    """(batch, tokens, channels), in float32 at least."""
    added, weight = added_and_weight(args)
    pointers = _pointers(weight, args.tree)
    return _down(_up(added, pointers), pointers), None


def scan_backward(args: TreeScanArguments, gradient: Tensor) -> tuple[Tensor, ...]:
    """The gradients of all tensors, from these alone.

    Paths lead both ways, so the gradient of what a vertex adds is the scan of the gradient. An edge is on the paths
    between what is below it, the sums of the sweep up, and what is not.
    """
    added, weight = added_and_weight(args)
    pointers = _pointers(weight, args.tree)
    weight, above = pointers[0]
    sums, dsums = _up(added, pointers), _up(gradient, pointers)
    h, dadded = _down(sums, pointers), _down(dsums, pointers)
    beyond, dbeyond = h[above] - weight * sums, dadded[above] - weight * dsums
    return gradients(args, dadded, weight * (dsums * beyond + sums * dbeyond))


def added_and_weight(args: TreeScanArguments) -> tuple[Tensor, Tensor]:
    """What every vertex adds, and the weight of the edge to its parent; that of the root means nothing."""
    u, delta, A, B, delta_bias = args.wide()
    step = softplus(delta + delta_bias)
    return step * B[..., None] * u, torch.exp(step * A)


def gradients(args: TreeScanArguments, dadded: Tensor, dexponent: Tensor) -> tuple[Tensor, ...]:
    """Those of all tensors, from that of what is added and that of the logarithms of the weights."""
    u, delta, A, B, delta_bias = args.wide()
    delta, B = delta + delta_bias, B[..., None]
    step = softplus(delta)
    ddelta = (dadded * B * u + dexponent * A) * torch.sigmoid(delta)
    dA, dB = (dexponent * step).sum((0, 1)), (dadded * step * u).sum(-1)
    found = (dadded * step * B, ddelta, dA, dB, ddelta.sum((0, 1)))
    return tuple(each.to(tensor.dtype) for each, tensor in zip(found, args.tensors(), strict=True))


def _pointers(weight: Tensor, tree: Tensor) -> Pointers:
    vertex, parent = tree[:, 0].long(), tree[:, 1].long()
    parent = torch.zeros_like(parent).scatter(1, vertex, parent)
    weight = torch.where(parent[..., None] < 0, 0, weight)  # the root hands nothing on
    image = torch.arange(len(parent), device=parent.device)[:, None]
    above = image, parent.clamp(min=0)
    pointers = [(weight, above)]
    for _ in range(rounds(weight.shape[1]) - 1):
        weight, above = weight * weight[above], (image, above[1][above])
        pointers.append((weight, above))
    return pointers


def _up(u: Tensor, pointers: Pointers) -> Tensor:
    """What lies below every vertex, itself included, each times the weights of the edges in between."""
    for weight, above in pointers:
        u = u.index_put(above, weight * u, accumulate=True)
    return u


def _down(sums: Tensor, pointers: Pointers) -> Tensor:
    """The same of all vertices: a vertex's own sum, and what its parent has from elsewhere."""
    h = sums * (1 - pointers[0][0].square())
    for weight, above in pointers:
        h = h + weight * h[above]
    return h


BACKEND = reference_backend(scan, scan_backward)
