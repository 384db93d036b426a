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
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.direction_sum import sum_blocks
from vssm_kernels.gpu import cdiv, launch, signature, triton_backend, why_no_triton
from vssm_kernels.wavefront_scan.arguments import WAYS, WavefrontArguments

try:
    import triton

    from vssm_kernels.wavefront_scan import triton_kernels as kernels
except ImportError:  # why_no_triton reports it
    triton = None

PROGRAMS = 1024  # with fewer, maps are cut into tiles
TILE = 8  # rows and columns of the smallest tile
# Numbers of a (channel, state) piece, the larger one where programs are many, and columns of a strip.
FORWARD, BACKWARD = ((256, 128), 4), ((128, 128), 2)


class _Plan(NamedTuple):
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

    def diagonals(self, batch: int, blocks: int) -> Iterator[tuple[int, int, int, tuple[int]]]:
        """Of every launch: the diagonal, the row of its first tile, how many tiles it has, and the grid."""
        for diagonal in range(self.tile_rows + self.tile_columns - 1):
            first = max(0, diagonal - self.tile_columns + 1)
            count = min(diagonal, self.tile_rows - 1) - first + 1
            yield diagonal, first, count, (batch * count * blocks,)


def _plan(args: WavefrontArguments, pieces: tuple[int, int], columns: int) -> _Plan:
    batch, height, width, channels = args.u.shape
    block_n = 1 << (args.state - 1).bit_length()
    for piece in pieces:
        block_c = max(1, min(piece // block_n, 1 << (channels - 1).bit_length()))
        programs = max(1, batch * cdiv(channels, block_c))
        if programs >= PROGRAMS:
            break
    sides = cdiv(PROGRAMS, programs)  # as many tiles on the longest diagonal
    rows = max(cdiv(height, sides), min(TILE, height))
    strips = max(cdiv(cdiv(width, columns), sides), cdiv(TILE, columns))
    return _Plan(block_c, block_n, columns, rows, strips, cdiv(height, rows), cdiv(width, columns * strips))


def scan(args: WavefrontArguments, save: bool = False) -> tuple[Tensor, None]:
    args = _with_contiguous_rows(args)
    y = torch.empty(args.output_shape, dtype=args.u.dtype, device=args.u.device)
    _run_forward(args, _plan(args, *FORWARD), y=y)
    return y, None


def scan_backward(args: WavefrontArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    args, gradient = _with_contiguous_rows(args), _rows(gradient)
    batch, height, width, channels = args.u.shape
    plan, device = _plan(args, *BACKWARD), args.u.device
    blocks = cdiv(channels, plan.block_c)
    pitch = blocks * plan.block_c

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    states = floats(batch, height, width, pitch, plan.block_n)
    _run_forward(args, _plan(args, *FORWARD), states=states, pitch=pitch)
    du = torch.empty(args.u.shape, dtype=args.u.dtype, device=device)
    ddelta = torch.empty(args.delta.shape, dtype=args.delta.dtype, device=device)
    dB, dC = (floats(blocks, *rows.shape[:-1], plan.block_n) for rows in (args.B, args.C))
    piece = pitch * plan.block_n
    shares = floats(batch * plan.tile_rows * plan.tile_columns, WAYS * piece + 3 * pitch)
    tensors, key, numbers = _operands(args, plan, pitch, gradient)
    tensors |= {
        "states": states,
        "across": floats(batch, height, piece),
        "down": floats(batch, width, piece),
        "du": du,
        "ddelta": ddelta,
        "dB": dB,
        "dC": dC,
        "shares": shares,
    }
    for diagonal, first, count, grid in reversed(list(plan.diagonals(batch, blocks))):
        launch(
            kernels.backward_kernel,
            grid,
            (key, diagonal, first),
            tensors,
            lambda where=(diagonal, first, count): {
                **numbers(),
                **dict(zip(("diagonal", "first", "count"), where, strict=True)),
                "batch": batch,
            },
        )
    total = shares.sum(0)
    dA = total[: WAYS * piece].view(WAYS, pitch, plan.block_n)[:, :channels, : args.state]
    dD, *dbias = total[WAYS * piece :].view(3, pitch)[:, :channels]
    dB, dC = (sum_blocks(d, rows.dtype)[..., : args.state] for d, rows in ((dB, args.B), (dC, args.C)))
    return args.cast(du, ddelta, dA, dB, dC, dD, torch.stack(dbias))


def _run_forward(
    args: WavefrontArguments, plan: _Plan, *, y: Tensor | None = None, states: Tensor | None = None, pitch: int = 0
) -> None:
    """The outputs into y, or for the backward the states of all positions."""
    batch, height, width, channels = args.u.shape
    blocks = cdiv(pitch or channels, plan.block_c)
    pitch = blocks * plan.block_c
    tensors, key, numbers = _operands(args, plan, pitch)
    again = y is None
    unused = args.u  # a pointer that the kernel does not follow
    across, down = (
        torch.empty(batch, side, pitch, plan.block_n, dtype=torch.float32, device=args.u.device)
        for side in (height, width)
    )
    tensors |= {
        "y": unused if again else y,
        "states": states if again else unused,
        "across": across,
        "down": down,
    }
    for diagonal, first, count, grid in plan.diagonals(batch, blocks):
        launch(
            kernels.forward_kernel,
            grid,
            (key, again, diagonal, first),
            tensors,
            lambda where=(diagonal, first, count): {
                **numbers(),
                **dict(zip(("diagonal", "first", "count"), where, strict=True)),
                "AGAIN": again,
            },
        )


def _operands(args: WavefrontArguments, plan: _Plan, pitch: int, gradient: Tensor | None = None):
    """What both kernels take of the arguments: tensors, a key, and numbers that depend on it."""
    channels, state = args.u.shape[3], args.state
    A = args.A.float()
    if (pitch, plan.block_n) != (channels, state):
        A = F.pad(A, (0, plan.block_n - state, 0, pitch - channels))
    absent = args.D is None, args.delta_bias is None
    D, bias = (A if tensor is None else tensor.float().contiguous() for tensor in (args.D, args.delta_bias))
    tensors = {"u": args.u, "delta": args.delta, "A": A.contiguous(), "B": args.B, "C": args.C, "D": D, "bias": bias}
    if gradient is not None:
        tensors["dy"] = gradient
    key = (*signature(*tensors.values()), absent, args.reverse, plan)

    def numbers() -> dict[str, int | bool]:
        rows = {name: tensors[name] for name in ("u", "delta", "B", "C", "dy") if name in tensors}
        strides = {}
        for name, tensor in rows.items():
            strides |= {f"{name}_batch": tensor.stride(0), f"{name}_token": tensor.stride(2)}
        strides |= {"delta_way": args.delta.stride(3), "B_way": args.B.stride(3)}
        of_states = [strides[name] for name in ("B_batch", "B_token", "B_way", "C_batch", "C_token")]
        places = [tensor.data_ptr() // tensor.element_size() for tensor in (args.B, args.C)]
        return {
            "height": args.u.shape[1],
            "width": args.u.shape[2],
            "channels": channels,
            "state": state,
            "blocks": pitch // plan.block_c,
            "rows": plan.rows,
            "strips": plan.strips,
            **strides,
            "HAS_D": args.D is not None,
            "HAS_BIAS": args.delta_bias is not None,
            "REVERSE": args.reverse,
            "STATE_ALIGN": math.gcd(state, *of_states, *places, 8),
            **plan.options(),
        }

    return tensors, key, numbers


def _rows(tensor: Tensor) -> Tensor:
    """With contiguous channels or states, and rows of the map one after another: one stride for all tokens."""
    if tensor.stride(-1) == 1 and tensor.stride(1) == tensor.shape[2] * tensor.stride(2):
        return tensor
    return tensor.contiguous()


def _with_contiguous_rows(args: WavefrontArguments) -> WavefrontArguments:
    return args._replace(**{name: _rows(getattr(args, name)) for name in ("u", "delta", "B", "C")})


def _why_not(args: WavefrontArguments | None) -> str | None:
    return why_no_triton(*(() if args is None else args.tensors()))


BACKEND = triton_backend(scan, scan_backward, _why_not)
