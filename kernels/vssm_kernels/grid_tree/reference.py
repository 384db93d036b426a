"""The tree of a map in plain torch, all images at once: Borůvka's rounds, and a walk around the tree.

Nothing depends on the data but numbers, so it can be traced and exported: rounds are as many as the largest grid of
this size can need. That is logarithmic, as everything here follows pointers by doubling: what a pointer points to, two
steps on, four steps on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.dispatch import reference_backend
from vssm_kernels.grid_tree.arguments import MapArguments, no_gradient
from vssm_kernels.saturation import wide

_SIDES = 4  # up, right, down, left: clockwise, so that the opposite of a side is two on
_EPS = 1e-8  # of the cosine
# Weights are float32 numbers from exp(-1) to exp(1), so multiples of 2^-25, and float64 tells multiples of 2^-51 apart.
# This much for each edge, up to a million of them, orders those of equal weight and no others.
_TIE = 2.0**-46


def tree(args: MapArguments, save: bool = False) -> tuple[Tensor, None]:
    """(batch, 4, tokens) int32."""
    _, height, width, _ = args.x.shape
    return table(spanning_tree(edge_weights(args.x), height, width), height, width), None


def standard_tree(args: MapArguments) -> Tensor:
    """For files that run without vssm: rounds are unrolled, so that they serve one size of map."""
    if any(isinstance(size, torch.SymInt) for size in args.x.shape[1:3]):
        raise ValueError(
            "a tree in standard operations is made for one height and width: declare only the batch dynamic, and "
            "export once for each size"
        )
    return tree(args)[0]


def edge_weights(x: Tensor) -> Tensor:
    """exp(-cosine) of neighbours: edges downwards by their upper end, then edges to the right by their left end."""
    x = wide(x)
    length = x.square().sum(-1).sqrt().clamp(min=_EPS)

    def weight(first: tuple[slice, ...], second: tuple[slice, ...]) -> Tensor:
        cosine = (x[first] * x[second]).sum(-1) / (length[first] * length[second])
        return torch.exp(-cosine).float().flatten(1)

    every, but_last, but_first = slice(None), slice(None, -1), slice(1, None)
    down = weight((every, but_last), (every, but_first))
    right = weight((every, every, but_last), (every, every, but_first))
    return torch.cat([down, right], dim=1)


def spanning_tree(weights: Tensor, height: int, width: int) -> Tensor:
    """Which edges are in the minimum spanning tree, as they are ordered in `edge_weights`: Borůvka's algorithm.

    Edges are ranked by weight and then by their number, so that no two are equal. In every round each component takes
    its lowest edge to another one.
    """
    tokens, edges = height * width, weights.shape[1]
    vertex = torch.arange(tokens, device=weights.device)
    grid = vertex.view(height, width)
    first = torch.cat([grid[:-1].flatten(), grid[:, :-1].flatten()])
    second = torch.cat([grid[1:].flatten(), grid[:, 1:].flatten()])
    number = torch.arange(edges, device=weights.device)
    by_rank = (weights.double() + _TIE * number).sort(dim=1)[1]  # ONNX has no stable sort
    rank = by_rank.sort(dim=1)[1]
    component = vertex.expand(weights.shape[0], tokens)  # len() would be a constant of exports
    taken = torch.zeros_like(rank, dtype=torch.bool)
    if edges == 0:
        return taken
    none = torch.full_like(component, edges)
    for doublings in range(rounds(tokens), 0, -1):
        one, other = component[:, first], component[:, second]
        crossing = torch.where(one == other, edges, rank)
        lowest = none.scatter_reduce(1, one, crossing, "amin").scatter_reduce(1, other, crossing, "amin")
        chosen = (crossing == lowest.gather(1, one)) | (crossing == lowest.gather(1, other))
        taken = taken | (chosen & (crossing < edges))
        # Every component joins the one at the edge's other end. Two that have chosen the same edge would join each
        # other: the smaller one stays.
        edge = by_rank.gather(1, lowest.clamp(max=edges - 1))
        beyond = one.gather(1, edge) + other.gather(1, edge) - vertex
        joined = torch.where(lowest < edges, beyond, vertex)
        stays = (joined.gather(1, joined) == vertex) & (vertex < joined)
        joined = torch.where(stays, vertex, joined)
        for _ in range(doublings):  # there are fewer components in every round, half as many at most
            joined = joined.gather(1, joined)
        component = joined.gather(1, component)
    return taken


def table(taken: Tensor, height: int, width: int) -> Tensor:
    """The tree's edges as `grid_tree` returns them.

    A walk around the tree from the root, along the edges' both sides, comes to every vertex first from its parent
    (Tarjan and Vishkin's Euler tour). Its steps are arcs, numbered 4 * vertex + side.
    """
    tokens = height * width
    vertex = torch.arange(tokens, device=taken.device)
    edges = taken.int().split([(height - 1) * width, height * (width - 1)], dim=1)
    down = F.pad(edges[0].unflatten(1, (height - 1, width)), (0, 0, 0, 1))
    right = F.pad(edges[1].unflatten(1, (height, width - 1)), (0, 1))
    up, left = F.pad(down, (0, 0, 1, 0))[:, :-1], F.pad(right, (1, 0))[:, :, :-1]
    exists = torch.stack([up, right, down, left], dim=-1).flatten(1, 2) > 0  # (batch, tokens, sides)

    side = torch.arange(_SIDES, device=taken.device)
    step = torch.tensor([-width, 1, width, -1], device=taken.device)
    beyond = (vertex[:, None] + step).clamp(0, tokens - 1)  # at the border there is no arc
    reverse = (_SIDES * beyond + (side + 2) % _SIDES).flatten()
    # The walk leaves a vertex by the first arc clockwise of the side that it came from, the last of all by that side.
    following = side.expand(exists.shape)
    for turn in (3, 2, 1):
        following = torch.where(exists.roll(-turn, dims=-1), (side + turn) % _SIDES, following)
    leaving = (_SIDES * vertex[:, None] + following).flatten(1)
    arc = torch.arange(_SIDES * tokens, device=taken.device)
    exists = exists.flatten(1)
    start = leaving[:, 3:4]  # comes to the root from the left, where it has no arc
    after = leaving[:, reverse]
    after = torch.where(exists & (after != start), after, arc)
    left_to_walk = (after != arc).long()
    for _ in range(rounds(2 * tokens)):
        left_to_walk = left_to_walk + left_to_walk.gather(1, after)
        after = after.gather(1, after)

    # An arc that leads from a child to its parent is walked after its reverse.
    upwards = (exists & (left_to_walk < left_to_walk[:, reverse])).unflatten(1, (tokens, _SIDES))
    parent = torch.where(upwards, beyond, -1).amax(-1)
    arrival = torch.where(upwards, left_to_walk[:, reverse].unflatten(1, (tokens, _SIDES)), -1).amax(-1)
    above = torch.where(parent < 0, vertex, parent)
    depth = (parent >= 0).long()
    for _ in range(rounds(tokens)):
        depth = depth + depth.gather(1, above)
        above = above.gather(1, above)

    order = (2 * tokens * (depth + 1) - arrival).sort(dim=1)[1]
    depth, parent = depth.gather(1, order), parent.gather(1, order)
    none = torch.zeros_like(order)
    children = none.scatter_add(1, parent.clamp(min=0), (parent >= 0).long()).gather(1, order)
    in_level = none.scatter_add(1, depth, none + 1)
    level = (in_level.cumsum(1) - in_level).gather(1, depth)
    return torch.stack([order, parent, 1 + children.cumsum(1), level], dim=1).int()


def rounds(size: int) -> int:
    """How often something has to be doubled to reach a size."""
    return (int(size) - 1).bit_length()  # a trace holds sizes as tensors


BACKEND = reference_backend(tree, no_gradient)
