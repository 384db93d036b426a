"""The minimum spanning tree of a map on a GPU in Triton: edges, tree and table, a kernel each, none of them waiting.

The tree is Borůvka's, an image a program. An edge is one 64-bit number, its weight's bits above its own number, so that
no two are equal and an atomic minimum finds a component's lowest edge whatever the order of its arrivals. Threads of a
program hand numbers to each other through global memory that stays in their cache; barriers stand in between.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vssm_kernels.gpu import Launcher, cdiv, triton_backend, why_no_triton
from vssm_kernels.grid_tree.arguments import ROWS, MapArguments, no_gradient

try:
    import triton
    import triton.language as tl
except ImportError:  # why_no_triton reports it
    triton = None

_EDGES = {"VERTICES": 16, "CHANNELS": 64, "num_warps": 4}
_BLOCK_MAX = 4096  # vertices of a program that are looked at together
_WALK = {"BLOCK": 32, "num_warps": 1}  # a level has some ten vertices; one warp needs no waiting for others
_NUMBERS = 5  # 32-bit ones of scratch for each vertex

if triton is not None:
    NO_EDGE = tl.constexpr(0x7FFFFFFFFFFFFFFF)

    @triton.jit
    def edges_kernel(
        x, weights, tokens, width, channels, VERTICES: tl.constexpr, CHANNELS: tl.constexpr
    ):  # fmt: skip
        """exp(-cosine) of every vertex with the one below and the one to the right."""
        blocks = tl.cdiv(tokens, VERTICES)
        image = (tl.program_id(0) // blocks).to(tl.int64)
        v = tl.program_id(0) % blocks * VERTICES + tl.arange(0, VERTICES)
        has_down, has_right = v + width < tokens, (v < tokens) & (v % width < width - 1)
        x += image * tokens * channels
        weights += image * 2 * tokens
        own = tl.zeros((VERTICES, CHANNELS), tl.float32)
        down, below, right, beside = own, own, own, own
        for first in range(0, channels, CHANNELS):
            c = first + tl.arange(0, CHANNELS)[None, :]
            here = x + v[:, None] * channels + c
            exists = c < channels
            p = tl.load(here, mask=exists & (v < tokens)[:, None], other=0.0).to(tl.float32)
            q = tl.load(here + width * channels, mask=exists & has_down[:, None], other=0.0).to(tl.float32)
            r = tl.load(here + channels, mask=exists & has_right[:, None], other=0.0).to(tl.float32)
            own += p * p
            down += p * q
            below += q * q
            right += p * r
            beside += r * r
        length = tl.maximum(tl.sqrt(tl.sum(own, 1)), 1e-8)
        cosine = tl.sum(down, 1) / (length * tl.maximum(tl.sqrt(tl.sum(below, 1)), 1e-8))
        tl.store(weights + v, tl.exp(-cosine), mask=has_down)
        cosine = tl.sum(right, 1) / (length * tl.maximum(tl.sqrt(tl.sum(beside, 1)), 1e-8))
        tl.store(weights + tokens + v, tl.exp(-cosine), mask=has_right)

    @triton.jit
    def crossing(weights, number, component, own, other, exists):
        """The edge of a number, where it leads to another component than one's own."""
        beyond = tl.load(component + other, mask=exists, other=0)
        bits = tl.load(weights + number, mask=exists, other=0.0).to(tl.int32, bitcast=True)
        return tl.where(exists & (beyond != own), (bits.to(tl.int64) << 32) + number, NO_EDGE)

    @triton.jit
    def spanning_kernel(weights, lowest, scratch, tokens, width, NUMBERS: tl.constexpr, BLOCK: tl.constexpr):
        """Which sides of every vertex have an edge of the tree: bits 0 to 3 for up, right, down, left."""
        image = tl.program_id(0).to(tl.int64)
        weights += image * 2 * tokens
        lowest += image * tokens
        sides = scratch + image * NUMBERS * tokens
        component = sides + tokens
        joined = component + tokens
        taken = joined + tokens  # of edges, by their numbers: `tokens` downwards, then as many to the right
        lane = tl.arange(0, BLOCK)
        for first in range(0, tokens, BLOCK):
            v = first + lane
            tl.store(joined + v, v, mask=v < tokens)
            tl.store(taken + v, 0, mask=v < tokens)
            tl.store(taken + tokens + v, 0, mask=v < tokens)
        components = tokens
        while components > 1:
            tl.debug_barrier()
            for first in range(0, tokens, BLOCK):
                v = first + lane
                tl.store(component + v, tl.load(joined + v, mask=v < tokens, other=0), mask=v < tokens)
                tl.store(lowest + v, tl.full((BLOCK,), NO_EDGE, tl.int64), mask=v < tokens)
            tl.debug_barrier()
            for first in range(0, tokens, BLOCK):
                v = first + lane
                exists = v < tokens
                own = tl.load(component + v, mask=exists, other=0)
                edge = crossing(weights, v - width, component, own, v - width, exists & (v >= width))
                right = crossing(weights, tokens + v, component, own, v + 1, exists & (v % width < width - 1))
                edge = tl.minimum(edge, right)
                edge = tl.minimum(edge, crossing(weights, v, component, own, v + width, v + width < tokens))
                left = crossing(weights, tokens + v - 1, component, own, v - 1, exists & (v % width > 0))
                edge = tl.minimum(edge, left)
                tl.atomic_min(lowest + own, edge, mask=exists & (edge != NO_EDGE), sem="relaxed")
            tl.debug_barrier()
            # Every component joins the one at its edge's other end. Two that have chosen the same edge would join each
            # other: the smaller one stays.
            components = 0
            for first in range(0, tokens, BLOCK):
                v = first + lane
                own = tl.load(component + v, mask=v < tokens, other=-1)
                edge = tl.load(lowest + v, mask=own == v, other=0)
                number = (edge & 0xFFFFFFFF).to(tl.int32)
                is_down = number < tokens
                one = tl.where(is_down, number, number - tokens)
                other = tl.where(is_down, number + width, one + 1)
                beyond = tl.load(component + one, mask=own == v, other=0) - v
                beyond += tl.load(component + other, mask=own == v, other=0)
                stays = (own == v) & (v < beyond) & (tl.load(lowest + beyond, mask=own == v, other=0) == edge)
                tl.store(joined + v, tl.where((own == v) & (stays == 0), beyond, own), mask=v < tokens)
                tl.store(taken + number, 1, mask=own == v)
                components += tl.sum(stays.to(tl.int32), 0)
            moved = 1
            while moved > 0:
                tl.debug_barrier()
                moved = 0
                for first in range(0, tokens, BLOCK):
                    v = first + lane
                    to = tl.load(joined + v, mask=v < tokens, other=0)
                    beyond = tl.load(joined + to, mask=v < tokens, other=0)
                    tl.store(joined + v, beyond, mask=v < tokens)
                    moved += tl.sum(((beyond != to) & (v < tokens)).to(tl.int32), 0)
        tl.debug_barrier()
        for first in range(0, tokens, BLOCK):
            v = first + lane
            up = tl.load(taken + v - width, mask=(v >= width) & (v < tokens), other=0)
            right = tl.load(taken + tokens + v, mask=v < tokens, other=0)
            down = tl.load(taken + v, mask=v < tokens, other=0)
            left = tl.load(taken + tokens + v - 1, mask=(v > 0) & (v < tokens), other=0)
            tl.store(sides + v, up + 2 * right + 4 * down + 8 * left, mask=v < tokens)

    @triton.jit
    def walk_kernel(scratch, table, tokens, width, NUMBERS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
        """The tree's vertices level by level, as `grid_tree` returns them."""
        image = tl.program_id(0).to(tl.int64)
        sides = scratch + image * NUMBERS * tokens
        vertex = table + image * ROWS * tokens
        parent = vertex + tokens
        children_end = parent + tokens
        level = children_end + tokens
        tl.store(vertex, 0)
        tl.store(parent, -1)
        begin = 0
        end = 1
        while begin < end:
            tl.debug_barrier()
            last = end
            for first in range(begin, end, BLOCK):
                step = first + tl.arange(0, BLOCK)
                exists = step < end
                v = tl.load(vertex + step, mask=exists, other=0)
                above = tl.load(parent + step, mask=exists, other=0)
                bits = tl.load(sides + v, mask=exists, other=0)
                # Children clockwise of the side that the parent lies on; that of the root is the left.
                side = tl.where(above == v + 1, 1, 3)
                side = tl.where(above == v + width, 2, side)
                side = tl.where(above == v - width, 0, side)
                bits = (bits | (bits << 4)) >> side
                count = ((bits >> 1) & 1) + ((bits >> 2) & 1) + ((bits >> 3) & 1)
                upto = last + tl.cumsum(count, 0)
                place = upto - count
                for turn in tl.static_range(1, 4):
                    has_child = ((bits >> turn) & 1) == 1
                    to = (side + turn) & 3
                    child = v + tl.where(to == 0, -width, tl.where(to == 1, 1, tl.where(to == 2, width, -1)))
                    tl.store(vertex + place, child, mask=has_child)
                    tl.store(parent + place, v, mask=has_child)
                    place += has_child.to(tl.int32)
                tl.store(children_end + step, upto, mask=exists)
                tl.store(level + step, begin, mask=exists)
                last += tl.sum(count, 0)
            begin = end
            end = last


def plan_tree(args: MapArguments, save: bool) -> Callable[[MapArguments], tuple[Tensor, None]]:
    (batch, height, width, channels), shape, device = args.x.shape, args.output_shape, args.device
    tokens = height * width
    sizes = {"tokens": tokens, "width": width}
    block = min(_BLOCK_MAX, 1 << (tokens - 1).bit_length())
    warps = max(1, min(32, block // 32))
    find_edges = Launcher(
        edges_kernel, (batch * cdiv(tokens, _EDGES["VERTICES"]),), **sizes, channels=channels, **_EDGES
    )
    span = Launcher(spanning_kernel, (batch,), **sizes, NUMBERS=_NUMBERS, BLOCK=block, num_warps=warps)
    walk = Launcher(walk_kernel, (batch,), **sizes, NUMBERS=_NUMBERS, ROWS=ROWS, **_WALK)

    def run(args: MapArguments) -> tuple[Tensor, None]:
        table = torch.empty(shape, dtype=torch.int32, device=device)
        if batch == 0:
            return table, None
        weights = torch.empty((batch, 2, tokens), dtype=torch.float32, device=device)
        lowest = torch.empty((batch, tokens), dtype=torch.int64, device=device)
        scratch = torch.empty((batch, _NUMBERS, tokens), dtype=torch.int32, device=device)
        find_edges(args.x.contiguous(), weights)
        span(weights, lowest, scratch)
        walk(scratch, table)
        return table, None

    return run


def plan_no_gradient(args: MapArguments, gradient: Tensor) -> Callable[[MapArguments, Tensor], tuple[None]]:
    return no_gradient


def _why_not(args: MapArguments | None) -> str | None:
    return why_no_triton() if args is None else why_no_triton(args.x)


BACKEND = triton_backend(plan_tree, plan_no_gradient, _why_not)
