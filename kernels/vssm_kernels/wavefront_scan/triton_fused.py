"""The wavefront scan on a GPU: how the kernels of triton_kernels.py are launched.

With many images one launch walks whole maps, a program each of some channels. Of a few, each map is cut into tiles, and
a launch walks those of one anti-diagonal, which need only the ones before it: no program waits for another. The states
between tiles and strips lie in memory, in float32.

The backward first runs the recurrence again, which writes the states of all positions, and then walks back. dB and dC
are sums over channels; they are written per block of channels and added up afterwards in a fixed order, without
atomics, so two runs are bit-equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.buffers import packed
from vssm_kernels.direction_sum import sum_blocks
from vssm_kernels.gpu import Launcher, cdiv, triton_backend, why_no_triton
from vssm_kernels.wavefront_scan.arguments import WAYS, WavefrontArguments

try:
    import triton

    from vssm_kernels.wavefront_scan import triton_kernels as kernels
except ImportError:  # why_no_triton reports it
    triton = None

# With fewer programs, maps are cut into so many tiles that the longest diagonal has TILED. Chosen, as the sizes below,
# by timing both scanned stages of mamba2d_tiny at batch 128 and one image of 1024 pixels on an H200.
PROGRAMS, TILED = 1024, 4096
TILE = 8  # rows and columns of the smallest tile
# Numbers of a (channel, state) piece, the larger one where programs are many, and columns of a strip.
FORWARD, BACKWARD = ((256, 128), 4), ((256, 256), 2)


class _Cut(NamedTuple):
    """How maps are cut: programs of `block_c` channels walk tiles of so many rows and strips of columns."""

    block_c: int
    block_n: int
    columns: int
    rows: int
    strips: int
    tile_rows: int
    tile_columns: int

    def options(self) -> dict[str, int]:
        return {"BLOCK_C": self.block_c, "BLOCK_N": self.block_n, "COLUMNS": self.columns, "num_warps": 1}

    def diagonals(self, batch: int, blocks: int) -> Iterator[dict[str, int | tuple[int]]]:
        """Of every launch: the diagonal, the row of its first tile, how many tiles it has, and the grid."""
        for diagonal in range(self.tile_rows + self.tile_columns - 1):
            first = max(0, diagonal - self.tile_columns + 1)
            count = min(diagonal, self.tile_rows - 1) - first + 1
            yield {"diagonal": diagonal, "first": first, "count": count, "grid": (batch * count * blocks,)}


def _cut(args: WavefrontArguments, pieces: tuple[int, int], columns: int) -> _Cut:
    batch, height, width, channels = args.u.shape
    block_n = 1 << (args.state - 1).bit_length()
    for piece in pieces:
        block_c = max(1, min(piece // block_n, 1 << (channels - 1).bit_length()))
        programs = max(1, batch * cdiv(channels, block_c))
        if programs >= PROGRAMS:
            break
    sides = 1 if programs >= PROGRAMS else cdiv(TILED, programs)  # as many tiles on the longest diagonal
    rows = max(cdiv(height, sides), min(TILE, height))
    strips = max(cdiv(cdiv(width, columns), sides), cdiv(TILE, columns))
    return _Cut(block_c, block_n, columns, rows, strips, cdiv(height, rows), cdiv(width, columns * strips))


def plan_scan(args: WavefrontArguments, save: bool) -> Callable[[WavefrontArguments], tuple[Tensor, None]]:
    shape, dtype, device = args.u.shape, args.u.dtype, args.u.device
    cut = _cut(args, *FORWARD)
    pitch = _pitch(shape[3], cut)
    walk = _plan_walk(args, cut, pitch, again=False)

    def run(args: WavefrontArguments) -> tuple[Tensor, None]:
        y = torch.empty(shape, dtype=dtype, device=device)
        walk(_tensors(args, pitch, cut.block_n), y, y)
        return y, None

    return run


def plan_scan_backward(
    args: WavefrontArguments, gradient: Tensor
) -> Callable[[WavefrontArguments, Tensor], tuple[Tensor | None, ...]]:
    batch, height, width, channels = shape = args.u.shape
    device, dtype, state = args.u.device, args.u.dtype, args.state
    forward, cut = _cut(args, *FORWARD), _cut(args, *BACKWARD)
    pitch = max(_pitch(channels, forward), _pitch(channels, cut))  # a multiple of both blocks, powers of two
    piece, blocks = pitch * cut.block_n, pitch // cut.block_c
    walk = _plan_walk(args, forward, pitch, again=True)
    numbers = _numbers(args, cut, pitch, _rows(gradient))
    launches = [
        Launcher(kernels.backward_kernel, where.pop("grid"), **numbers, **where)
        for where in reversed(list(cut.diagonals(batch, blocks)))
    ]

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    def run(args: WavefrontArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors = _tensors(args, pitch, cut.block_n)
        states = floats(batch, height, width, piece)
        walk(tensors, tensors[0], states)
        du = torch.empty(shape, dtype=dtype, device=device)
        ddelta = torch.empty(args.delta.shape, dtype=args.delta.dtype, device=device)
        across, down = floats(batch, height, piece), floats(batch, width, piece)
        dB, dC = (floats(blocks, *rows.shape[:-1], cut.block_n) for rows in (args.B, args.C))
        shares = floats(batch * cut.tile_rows * cut.tile_columns, WAYS * piece + 3 * pitch)
        gradient = _rows(gradient)
        for launch in launches:
            launch(*tensors, states, across, down, gradient, du, ddelta, dB, dC, shares)
        total = shares.sum(0)
        dA = total[: WAYS * piece].view(WAYS, pitch, cut.block_n)[:, :channels, :state]
        dD, *dbias = total[WAYS * piece :].view(3, pitch)[:, :channels]
        dB, dC = (sum_blocks(d, rows.dtype)[..., :state] for d, rows in ((dB, args.B), (dC, args.C)))
        return args.cast(du, ddelta, dA, dB, dC, dD, torch.stack(dbias))

    return run


def _plan_walk(
    args: WavefrontArguments, cut: _Cut, pitch: int, *, again: bool
) -> Callable[[tuple[Tensor, ...], Tensor, Tensor], None]:
    """The walk forwards: the outputs into y, or `again` for the backward the states of all positions."""
    batch, height, width, _ = args.u.shape
    numbers, device = _numbers(args, cut, pitch), args.u.device
    launches = [
        Launcher(kernels.forward_kernel, where.pop("grid"), **numbers, **where, AGAIN=again)
        for where in cut.diagonals(batch, pitch // cut.block_c)
    ]

    def run(tensors: tuple[Tensor, ...], y: Tensor, states: Tensor) -> None:
        across, down = (
            torch.empty((batch, side, pitch * cut.block_n), dtype=torch.float32, device=device)
            for side in (height, width)
        )
        for launch in launches:
            launch(*tensors, y, states, across, down)

    return run


def _pitch(channels: int, cut: _Cut) -> int:
    """Channels of the buffers of states: whole blocks."""
    return cdiv(channels, cut.block_c) * cut.block_c


def _tensors(args: WavefrontArguments, pitch: int, block_n: int) -> tuple[Tensor, ...]:
    """What both kernels take first. Where D or the bias is absent its pointer is that of A, which is not followed."""
    _, channels, state = args.A.shape
    A = args.A.float()
    if (pitch, block_n) != (channels, state):
        A = F.pad(A, (0, block_n - state, 0, pitch - channels))
    A = A.contiguous()
    D, bias = (A if tensor is None else tensor.float().contiguous() for tensor in (args.D, args.delta_bias))
    return _rows(args.u), _rows(args.delta), A, _rows(args.B), _rows(args.C), D, bias


def _numbers(args: WavefrontArguments, cut: _Cut, pitch: int, gradient: Tensor | None = None) -> dict[str, int | bool]:
    """Sizes, strides and switches."""
    batch, height, width, channels = args.u.shape
    u, delta, _, B, C, *_ = _tensors(args, pitch, cut.block_n)
    rows = {"u": u, "delta": delta, "B": B, "C": C} | ({} if gradient is None else {"dy": gradient})
    strides = {"delta_way": delta.stride(3), "B_way": B.stride(3)}
    for name, tensor in rows.items():
        strides |= {f"{name}_batch": tensor.stride(0), f"{name}_token": tensor.stride(2)}
    of_states = [strides[name] for name in ("B_batch", "B_token", "B_way", "C_batch", "C_token")]
    places = [tensor.data_ptr() // tensor.element_size() for tensor in (B, C)]
    return {
        "height": height,
        "width": width,
        "channels": channels,
        "state": args.state,
        "blocks": pitch // cut.block_c,
        "rows": cut.rows,
        "strips": cut.strips,
        **strides,
        **({} if gradient is None else {"batch": batch}),
        "HAS_D": args.D is not None,
        "HAS_BIAS": args.delta_bias is not None,
        "REVERSE": args.reverse,
        "STATE_ALIGN": math.gcd(args.state, *of_states, *places, 8),
        **cut.options(),
    }


def _rows(tensor: Tensor) -> Tensor:
    """With contiguous channels or states, and rows of the map one after another: one stride for all tokens."""
    if tensor.stride(-1) == 1 and tensor.stride(1) == tensor.shape[2] * tensor.stride(2):
        return tensor
    return packed(tensor)


def _why_not(args: WavefrontArguments | None) -> str | None:
    return why_no_triton(*(() if args is None else args.tensors()))


BACKEND = triton_backend(plan_scan, plan_scan_backward, _why_not)
