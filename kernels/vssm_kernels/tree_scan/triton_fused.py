"""The scan of a tree on a GPU in Triton: a program sweeps some channels of an image up and down, level by level.

Vertices of a level do not wait for each other, and sums are read by who needs them, parents from their children:
nothing is added up by atomics, and two runs are bit-equal. What the sweep up leaves lies in the order of steps, in
which the children of a vertex stand side by side. The backward sweeps twice as many numbers, and the forward saves
nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vssm_kernels.direction_sum import sum_blocks
from vssm_kernels.gpu import Launcher, cdiv, triton_backend, why_no_triton
from vssm_kernels.grid_tree.arguments import ROWS
from vssm_kernels.tree_scan.arguments import TreeScanArguments

try:
    import triton
    import triton.language as tl

    from vssm_kernels.selective_scan.triton_kernels import softplus
    from vssm_kernels.triton_math import saturate, sigmoid
except ImportError:  # why_no_triton reports it
    triton = None

_CHANNELS = 32  # of a program
# Of a tile as many vertices as a level has: some 12 of 56 x 56, and 4 of 14 x 14.
_LARGE, _WIDE, _NARROW = 784, {"VERTICES": 16, "num_warps": 2}, {"VERTICES": 8, "num_warps": 1}

if triton is not None:
    LOG2_E = tl.constexpr(1.4426950408889634)

    @triton.jit
    def place_of_program(
        u, delta, A, B, delta_bias, tree, tokens, channels, u_batch, delta_batch, B_batch,
        ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """Image and channels of this program, the image's inputs and tree, and the channels' rates and biases."""
        blocks = tl.cdiv(channels, CHANNELS)
        image = (tl.program_id(0) // blocks).to(tl.int64)
        c = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :]
        A_c = tl.load(A + c, mask=c < channels, other=0.0).to(tl.float32)
        bias = tl.load(delta_bias + c, mask=c < channels, other=0.0).to(tl.float32)
        inputs = u + image * u_batch, delta + image * delta_batch, B + image * B_batch, tree + image * ROWS * tokens
        return image, c, inputs, A_c, bias

    @triton.jit
    def load_steps(tree, tokens, first, end, VERTICES: tl.constexpr):
        """Steps from `first` to `end`, which of them exist, their vertices and parents."""
        step = first + tl.arange(0, VERTICES)
        exists = step < end
        v = tl.load(tree + step, mask=exists, other=0)
        return step, exists, v, tl.load(tree + tokens + step, mask=exists, other=-1)

    @triton.jit
    def load_children(tree, tokens, step, exists):
        """The steps of a vertex's children: the first, and the one behind the last."""
        end = tree + 2 * tokens + step
        begin = tl.load(end - 1, mask=exists & (step > 0), other=1)
        return begin, tl.load(end, mask=exists, other=0)

    @triton.jit
    def children_sum(handed, begin, end, channels, c, mask):
        """What the children hand on: at most three, as one of four neighbours is the parent."""
        total = tl.load(handed + begin[:, None] * channels + c, mask=mask & (begin < end)[:, None], other=0.0)
        for j in tl.static_range(1, 3):
            here = handed + (begin[:, None] + j) * channels + c
            total += tl.load(here, mask=mask & (begin + j < end)[:, None], other=0.0)
        return total

    @triton.jit
    def load_inputs(u, delta, B, bias, v, exists, u_token, delta_token, B_token, c, mask):
        """u, B, and the step size before softplus."""
        u_v = tl.load(u + v[:, None] * u_token + c, mask=mask, other=0.0).to(tl.float32)
        B_v = tl.load(B + v * B_token, mask=exists, other=0.0).to(tl.float32)[:, None]
        delta_v = tl.load(delta + v[:, None] * delta_token + c, mask=mask, other=0.0).to(tl.float32)
        return u_v, B_v, delta_v + bias

    @triton.jit
    def forward_kernel(
        u, delta, A, B, delta_bias, tree, sums, h, tokens, channels,
        u_batch, u_token, delta_batch, delta_token, B_batch, B_token,
        ROWS: tl.constexpr, VERTICES: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """In the sweep up, h holds what vertices hand on to their parents, in the order of steps."""
        image, c, inputs, A_c, bias = place_of_program(
            u, delta, A, B, delta_bias, tree, tokens, channels, u_batch, delta_batch, B_batch, ROWS, CHANNELS
        )
        u, delta, B, tree = inputs
        sums += image * tokens * channels
        h += image * tokens * channels
        rate = A_c * LOG2_E

        end = tokens
        while end > 0:
            begin = tl.load(tree + 3 * tokens + end - 1)
            for first in range(begin, end, VERTICES):
                step, exists, v, _ = load_steps(tree, tokens, first, end, VERTICES)
                mask = exists[:, None] & (c < channels)
                child, children_end = load_children(tree, tokens, step, exists)
                u_v, B_v, delta_v = load_inputs(
                    u, delta, B, bias, v, exists, u_token, delta_token, B_token, c, mask
                )  # fmt: skip
                size = softplus(delta_v)
                total = size * B_v * u_v + children_sum(h, child, children_end, channels, c, mask)
                place = step[:, None] * channels + c
                tl.store(sums + place, total, mask=mask)
                tl.store(h + place, tl.exp2(size * rate) * total, mask=mask)
            tl.debug_barrier()
            end = begin

        begin = 0
        end = 1
        while begin < end:
            for first in range(begin, end, VERTICES):
                step, exists, v, parent = load_steps(tree, tokens, first, end, VERTICES)
                mask = exists[:, None] & (c < channels)
                total = tl.load(sums + step[:, None] * channels + c, mask=mask, other=0.0)
                delta_v = tl.load(delta + v[:, None] * delta_token + c, mask=mask, other=0.0).to(tl.float32) + bias
                weight = tl.where(parent[:, None] < 0, 0.0, tl.exp2(softplus(delta_v) * rate))
                above = tl.load(h + parent[:, None] * channels + c, mask=mask & (parent >= 0)[:, None], other=0.0)
                tl.store(h + v[:, None] * channels + c, total + weight * (above - weight * total), mask=mask)
            tl.debug_barrier()
            begin = end
            end = tl.load(tree + 2 * tokens + end - 1)

    @triton.jit
    def backward_kernel(
        u, delta, A, B, delta_bias, tree, gradient, sums, dsums, h, dh, du, ddelta, dA, dB, dbias,
        tokens, channels, u_batch, u_token, delta_batch, delta_token, B_batch, B_token,
        ROWS: tl.constexpr, VERTICES: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """As the forward, of the gradient too; h and dh hold what is handed on, and then the states of both."""
        image, c, inputs, A_c, bias = place_of_program(
            u, delta, A, B, delta_bias, tree, tokens, channels, u_batch, delta_batch, B_batch, ROWS, CHANNELS
        )
        u, delta, B, tree = inputs
        rows = image * tokens * channels
        gradient += rows
        sums += rows
        dsums += rows
        h += rows
        dh += rows
        du += rows
        ddelta += rows
        dB += tl.program_id(0).to(tl.int64) * tokens  # of each image, and of each block of channels
        rate = A_c * LOG2_E

        end = tokens
        while end > 0:
            begin = tl.load(tree + 3 * tokens + end - 1)
            for first in range(begin, end, VERTICES):
                step, exists, v, _ = load_steps(tree, tokens, first, end, VERTICES)
                mask = exists[:, None] & (c < channels)
                child, children_end = load_children(tree, tokens, step, exists)
                u_v, B_v, delta_v = load_inputs(
                    u, delta, B, bias, v, exists, u_token, delta_token, B_token, c, mask
                )  # fmt: skip
                size = softplus(delta_v)
                weight = tl.exp2(size * rate)
                total = size * B_v * u_v + children_sum(h, child, children_end, channels, c, mask)
                dtotal = tl.load(gradient + v[:, None] * channels + c, mask=mask, other=0.0).to(tl.float32)
                dtotal += children_sum(dh, child, children_end, channels, c, mask)
                place = step[:, None] * channels + c
                tl.store(sums + place, total, mask=mask)
                tl.store(dsums + place, dtotal, mask=mask)
                tl.store(h + place, weight * total, mask=mask)
                tl.store(dh + place, weight * dtotal, mask=mask)
            tl.debug_barrier()
            end = begin

        dA_lanes = tl.zeros((VERTICES, CHANNELS), tl.float32)
        dbias_lanes = tl.zeros((VERTICES, CHANNELS), tl.float32)
        begin = 0
        end = 1
        while begin < end:
            for first in range(begin, end, VERTICES):
                step, exists, v, parent = load_steps(tree, tokens, first, end, VERTICES)
                mask = exists[:, None] & (c < channels)
                u_v, B_v, delta_v = load_inputs(
                    u, delta, B, bias, v, exists, u_token, delta_token, B_token, c, mask
                )  # fmt: skip
                size = softplus(delta_v)
                weight = tl.where(parent[:, None] < 0, 0.0, tl.exp2(size * rate))
                total = tl.load(sums + step[:, None] * channels + c, mask=mask, other=0.0)
                dtotal = tl.load(dsums + step[:, None] * channels + c, mask=mask, other=0.0)
                has_parent = mask & (parent >= 0)[:, None]
                beyond = tl.load(h + parent[:, None] * channels + c, mask=has_parent, other=0.0) - weight * total
                dbeyond = tl.load(dh + parent[:, None] * channels + c, mask=has_parent, other=0.0) - weight * dtotal
                dadded = dtotal + weight * dbeyond
                dexponent = weight * (dtotal * beyond + total * dbeyond)
                place = v[:, None] * channels + c
                tl.store(h + place, total + weight * beyond, mask=mask)
                tl.store(dh + place, dadded, mask=mask)
                ddelta_v = tl.where(mask, (dadded * B_v * u_v + dexponent * A_c) * sigmoid(delta_v), 0.0)
                tl.store(du + place, saturate(dadded * size * B_v, du.dtype.element_ty), mask=mask)
                tl.store(ddelta + place, saturate(ddelta_v, ddelta.dtype.element_ty), mask=mask)
                tl.store(dB + v, tl.sum(dadded * size * u_v, 1), mask=exists)
                dA_lanes += dexponent * size
                dbias_lanes += ddelta_v
            tl.debug_barrier()
            begin = end
            end = tl.load(tree + 2 * tokens + end - 1)
        share = image * channels + c
        tl.store(dA + share, tl.sum(dA_lanes, 0)[None, :], mask=c < channels)
        tl.store(dbias + share, tl.sum(dbias_lanes, 0)[None, :], mask=c < channels)


def plan_scan(args: TreeScanArguments, save: bool) -> Callable[[TreeScanArguments], tuple[Tensor, None]]:
    shape, device = args.output_shape, args.device
    launch = _launcher(forward_kernel, args)

    def run(args: TreeScanArguments) -> tuple[Tensor, None]:
        sums, h = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(2))
        if h.numel():
            launch(*_tensors(args), sums, h)
        return h, None

    return run


def plan_scan_backward(
    args: TreeScanArguments, gradient: Tensor
) -> Callable[[TreeScanArguments, Tensor], tuple[Tensor, ...]]:
    (batch, tokens, channels), device = args.u.shape, args.device
    blocks = cdiv(channels, _CHANNELS)
    launch = _launcher(backward_kernel, args)

    def wide(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    def run(args: TreeScanArguments, gradient: Tensor) -> tuple[Tensor, ...]:
        sums, dsums, h, dh = (wide(batch, tokens, channels) for _ in range(4))
        dA, dB, dbias = wide(batch, channels), wide(batch, blocks, tokens), wide(batch, channels)
        du, ddelta = (torch.empty(h.shape, dtype=each.dtype, device=device) for each in (args.u, args.delta))
        if h.numel():
            gradient = gradient.contiguous()
            launch(*_tensors(args), gradient, sums, dsums, h, dh, du, ddelta, dA, dB, dbias)
        dA, dbias = sum_blocks(dA, args.A.dtype), sum_blocks(dbias, args.delta_bias.dtype)
        return du, ddelta, dA, dB.sum(1).to(args.B.dtype), dbias

    return run


def _tensors(args: TreeScanArguments) -> tuple[Tensor, ...]:
    """What both kernels take."""
    u, delta = (each if each.stride(2) == 1 else each.contiguous() for each in (args.u, args.delta))
    return u, delta, args.A.contiguous(), args.B, args.delta_bias.contiguous(), args.tree.contiguous()


def _launcher(kernel: Any, args: TreeScanArguments) -> Launcher:
    """A program for each image and block of channels."""
    batch, tokens, channels = args.u.shape
    u, delta, _, B, *_ = _tensors(args)
    strides = {
        f"{name}_{of}": tensor.stride(dim)
        for name, tensor in (("u", u), ("delta", delta), ("B", B))
        for dim, of in enumerate(("batch", "token"))
    }
    tile = _WIDE if tokens > _LARGE else _NARROW
    grid = (batch * cdiv(channels, _CHANNELS),)
    sizes = {"tokens": tokens, "channels": channels, "ROWS": ROWS, "CHANNELS": _CHANNELS}
    return Launcher(kernel, grid, **sizes, **strides, **tile)


def _why_not(args: TreeScanArguments | None) -> str | None:
    return why_no_triton() if args is None else why_no_triton(*args.tensors())


BACKEND = triton_backend(plan_scan, plan_scan_backward, _why_not)
