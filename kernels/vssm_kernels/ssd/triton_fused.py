"""State-space duality on a GPU: how the kernels of triton_kernels.py are launched.

One program walks one (batch, direction, head, block of channels), or where these are few, one segment of its chunks.
The forward saves the state before each chunk if a backward may follow, which then walks once, from the last chunk to
the first. Gradients that are sums over heads or blocks are written for each and added up afterwards in a fixed order,
without atomics, so two runs are bit-equal. Products of bfloat16 inputs are those of the tensor cores; of float16, whose
states could leave its range, they are TF32, with as many digits; of float32, three of TF32, with all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.direction_sum import sum_blocks, sum_directions
from vssm_kernels.gpu import cdiv, launch, signature, triton_backend, why_no_triton
from vssm_kernels.orders import output_rows
from vssm_kernels.saturation import saturate
from vssm_kernels.ssd.arguments import SSDArguments
from vssm_kernels.ssd.chunked import decays_between

try:
    import triton

    from vssm_kernels.ssd import triton_kernels as kernels
except ImportError:  # why_no_triton reports it
    triton = None

# Steps of a chunk: long ones walk faster, and the backward spills less in short ones.
LENGTH, LONG_LENGTH, LONG_STEPS = 32, 64, 256
PROGRAMS = 528  # fill a large GPU: with fewer, sequences are cut into segments
STATES = 256  # the largest state


class _Tile(NamedTuple):
    steps: int  # of a chunk
    block_n: int
    block_p: int
    blocks: int
    chunks: int
    length: int  # chunks of a segment
    segments: int

    @classmethod
    def of(cls, args: SSDArguments, backward_follows: bool) -> _Tile:
        steps = LENGTH if backward_follows or args.steps <= LONG_STEPS else LONG_LENGTH
        block_n, block_p = (max(16, 1 << (size - 1).bit_length()) for size in (args.state, args.channels))
        block_p = min(block_p, 64 if block_n <= 128 else 32)
        blocks, chunks = cdiv(args.channels, block_p), cdiv(args.steps, steps)
        programs = args.batch * args.directions * args.heads * blocks
        segments = max(1, min(PROGRAMS // max(programs, 1), chunks // 2))
        length = cdiv(chunks, segments)
        return cls(steps, block_n, block_p, blocks, chunks, length, cdiv(chunks, length))

    @property
    def options(self) -> dict[str, int]:
        warps = 8 if self.block_n > 64 else 4
        return {"LENGTH": self.steps, "BLOCK_N": self.block_n, "BLOCK_P": self.block_p, "num_warps": warps}


def saves(args: SSDArguments) -> tuple[tuple[int, ...], torch.dtype]:
    """The state before each chunk, in the dtype in which products read it."""
    tile = _Tile.of(args, backward_follows=True)
    dtype = torch.bfloat16 if args.u.dtype == torch.bfloat16 else torch.float32
    walks = (args.batch, args.directions, args.heads, tile.blocks)
    return (*walks, tile.chunks, tile.block_n, tile.block_p), dtype


def duality(args: SSDArguments, save: bool = False) -> tuple[Tensor, Tensor | None]:
    """The output, and the states that are saved for the backward; see `saves`."""
    operands = _Operands(args, backward_follows=save)
    y, saved = _run_forward(operands, save)
    return operands.of_tokens(y, args.u.dtype, merge=args.merge), saved


def duality_backward(args: SSDArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of `args.tensors()`, with the states that `duality` saved, or after walking forwards once more."""
    operands = _Operands(args, True, args.per_direction(gradient))
    tile = operands.tile
    shape, _ = saves(args)
    saved = args.states
    if saved is None or saved.shape != shape:  # saved by another backend: ignored
        _, saved = _run_forward(operands, save=True)
    dends = _carried(operands, adjoint=True) if tile.segments > 1 else saved
    merge = args.shared_input and operands.merges
    du = operands.rows((), (args.heads, args.channels), like=args.u, merge=merge)
    ddelta = operands.rows((tile.blocks,), (args.heads,), like=args.delta if tile.blocks == 1 else None)
    shares_of_group = args.heads // args.groups * tile.blocks
    dB, dC = (operands.rows((shares_of_group,), args.B.shape[3:], like=each) for each in (args.B, args.C))
    floats = {"dtype": torch.float32, "device": args.device}
    dstart = torch.empty(shape[:4] + shape[5:], **floats) if args.initial is not None else saved
    shares = torch.empty((*shape[:4], tile.segments, 3), **floats)
    tensors = {"dends": dends, "saved": saved, "du": du, "ddelta": ddelta, "dB": dB, "dC": dC}
    operands.launch(
        kernels.backward_kernel,
        {**tensors, "dstart": dstart, "shares": shares},
        {"HAS_END": tile.segments > 1, "HAS_START": args.initial is not None, "MERGE": merge},
    )
    dA, dD, dbias = shares.sum((0, 3, 4)).unbind(-1)
    dinitial = None
    if args.initial is not None:  # (batch, directions, heads, blocks, state, channels of the block)
        dinitial = dstart.movedim(4, -1).flatten(3, 4)[..., : args.channels, : args.state]
    return args.cast(
        operands.of_tokens(du, args.u.dtype, merge=args.shared_input),
        operands.of_tokens(_sum_of_shares(ddelta, args.delta.dtype), args.delta.dtype),
        dA,
        operands.of_tokens(_sum_of_shares(dB, args.B.dtype), args.B.dtype),
        operands.of_tokens(_sum_of_shares(dC, args.C.dtype), args.C.dtype),
        dD,
        dbias,
        dinitial,
    )


def _run_forward(operands: _Operands, save: bool) -> tuple[Tensor, Tensor | None]:
    args, tile = operands.args, operands.tile
    shape, dtype = saves(args)
    saved = torch.empty(shape, dtype=dtype, device=args.device) if save else None
    merge = args.merge and operands.merges
    y = operands.rows((), (args.heads, args.channels), like=args.u, merge=merge)
    if tile.segments > 1:
        starts = _carried(operands)
    else:
        starts = _as_tiles(args.initial, tile) if args.initial is not None else args.A
    operands.launch(
        kernels.forward_kernel,
        {"starts": starts, "y": y, "saved": args.A if saved is None else saved},
        {"HAS_START": tile.segments > 1 or args.initial is not None, "SAVE": save, "MERGE": merge},
    )
    return y, saved


def _carried(operands: _Operands, adjoint: bool = False) -> Tensor:
    """The state that every segment starts from; adjoint, the gradient of the one that it ends in."""
    args, tile = operands.args, operands.tile
    walks = (args.batch, args.directions, args.heads, tile.blocks, tile.segments)
    ends = torch.empty((*walks, tile.block_n, tile.block_p), dtype=torch.float32, device=args.device)
    totals = torch.empty(walks, dtype=torch.float32, device=args.device)
    # Adjoint it is the same walk, from the end, of the output's gradient in place of u and C in place of B.
    read_as = {"u": "dy", "B": "C"} if adjoint else {}
    switches = {"ADJOINT": adjoint, "SHIFT": int(args.shift and adjoint)}
    operands.launch(kernels.ends_kernel, {"ends": ends, "totals": totals}, switches, read_as)
    kept = decays_between(totals * math.log(2))
    if adjoint:
        before = (kept.mT @ ends.flatten(-2)).view_as(ends)
        return torch.cat([before[..., 1:, :, :], torch.zeros_like(before[..., :1, :, :])], -3)
    first = torch.zeros_like(ends[..., :1, :, :]) if args.initial is None else _as_tiles(args.initial, tile)
    return (kept @ torch.cat([first, ends[..., :-1, :, :]], -3).flatten(-2)).view_as(ends)


def _as_tiles(initial: Tensor, tile: _Tile) -> Tensor:
    """(batch, directions, heads, channels, state) as (batch, directions, heads, blocks, 1, state, channels)."""
    channels, state = initial.shape[-2:]
    filled = F.pad(initial.float(), (0, tile.block_n - state, 0, tile.blocks * tile.block_p - channels))
    return filled.unflatten(-2, (tile.blocks, 1, tile.block_p)).mT.contiguous()


def _sum_of_shares(shares: Tensor, dtype: torch.dtype) -> Tensor:
    return shares[0] if len(shares) == 1 else sum_blocks(shares, dtype)


class _Operands:
    """What every kernel takes of the arguments: tensors by the kernels' names, sizes, strides and switches."""

    def __init__(self, args: SSDArguments, backward_follows: bool, gradient: Tensor | None = None):
        self.args, self.tile = args, _Tile.of(args, backward_follows)
        rows = {"u": args.u, "delta": args.delta, "B": args.B, "C": args.C}
        if gradient is not None:
            rows["dy"] = gradient
        A = args.A.float().contiguous()
        D, bias = (A if tensor is None else tensor.float().contiguous() for tensor in (args.D, args.delta_bias))
        self.tensors = {
            **{name: t if name == "delta" or t.stride(-1) == 1 else t.contiguous() for name, t in rows.items()},
            "A": A,
            "D": D,
            "bias": bias,
            "order": A if args.order is None else args.order.table,  # a pointer that is not followed
        }
        # Tokens that are visited twice have a row for each visit, which are added up.
        self.row_count = args.steps if args.repeats else args.tokens
        # Whether one program may walk all directions, and add to what it wrote before.
        whole = args.order is None or args.order.writes_each_row_once
        self.merges = bool(whole) and args.batch * args.heads * self.tile.blocks >= PROGRAMS

    def rows(self, before: tuple[int, ...], after: tuple[int, ...], like: Tensor | None, merge: bool = False) -> Tensor:
        """Memory for (*before, batch, rows, directions, *after), without the directions where programs merge them."""
        args = self.args
        shape = (*before, args.batch, self.row_count, *(() if merge else (args.directions,)), *after)
        dtype = torch.float32 if like is None or args.repeats else like.dtype
        return output_rows(args.order, shape, dtype, args.device)

    def of_tokens(self, rows: Tensor, dtype: torch.dtype, merge: bool = False) -> Tensor:
        """(batch, rows, directions, ...) as (batch, tokens, directions, ...), or with merge without the directions."""
        rows = self._added_up(rows, dtype) if self.args.repeats else rows
        if merge and rows.dim() == 5:  # else the programs have merged them
            return sum_directions(rows.flatten(3)).unflatten(2, rows.shape[3:])
        return rows

    def _added_up(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        args = self.args
        token = args.order.table.long()
        batch, direction = (torch.arange(size, device=args.device) for size in (args.batch, args.directions))
        sums = rows.new_zeros(args.batch, args.directions, args.tokens + 1, *rows.shape[3:])
        places = batch[:, None, None], direction[:, None], torch.where(token < 0, args.tokens, token)
        sums.index_put_(places, rows.transpose(1, 2), accumulate=True)  # on a GPU in a fixed order
        return saturate(sums[:, :, :-1].transpose(1, 2).contiguous(), dtype)

    def launch(
        self,
        kernel: Any,
        tensors: dict[str, Tensor],
        switches: dict[str, int],
        read_as: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """With tensors and switches of its own; `read_as` names what the kernel reads in place of others."""
        args, tile = self.args, self.tile
        known = {name: self.tensors[read_as.get(name, name)] for name in self.tensors if name in kernel.arg_names}

        def others() -> dict[str, Any]:
            strides = _strides(known)
            longest = max(math.prod(args.row_shape[2:]), *(strides[name] for name in strides if "token" in name))
            given = {
                "steps": args.steps,
                "rows": self.row_count,
                "batch": args.batch,
                "directions": args.directions,
                "heads": args.heads,
                "channels": args.channels,
                "state": args.state,
                "per_group": args.heads // args.groups,
                "blocks": tile.blocks,
                "chunks": tile.chunks,
                "length": tile.length,
                "segments": tile.segments,
                **strides,
                "HAS_ORDER": args.order is not None,
                "HAS_D": args.D is not None,
                "HAS_BIAS": args.delta_bias is not None,
                "SHIFT": int(args.shift),
                "BY_STEP": args.repeats,
                "WIDE": self.row_count * longest >= 2**31,
                # Triton's interpreter would multiply the bits of bfloat16.
                "NARROW": args.u.dtype == torch.bfloat16 and not triton.knobs.runtime.interpret,
                "PRECISION": "tf32x3" if args.u.dtype == torch.float32 else "tf32",
                **switches,
            }
            return {name: value for name, value in given.items() if name in kernel.arg_names} | tile.options

        key = (args.groups, args.order is None, args.D is None, args.delta_bias is None, args.shift, args.repeats, tile)
        walks = args.batch if switches.get("MERGE") else args.batch * args.directions
        grid = (walks * args.heads * tile.blocks * tile.segments,)
        if args.batch:
            tensors = known | tensors
            launch(kernel, grid, (*signature(*tensors.values()), key, *switches.items()), tensors, others)


def _strides(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """From batch to batch, token to token, direction to direction, and head to head or group to group."""
    found = {}
    for name in {"u", "delta", "B", "C", "dy"} & tensors.keys():
        strides = list(tensors[name].stride()[:4])
        if name == "u" and tensors[name].dim() == 4:  # shared by the directions
            strides = [*strides[:2], 0, strides[2]]
        names = ("batch", "token", "direction", "group" if name in "BC" else "head")
        found |= {f"{name}_{of}": stride for of, stride in zip(names, strides, strict=True)}
    return found


def _why_not(args: SSDArguments | None) -> str | None:
    reason = why_no_triton(*(() if args is None else args.tensors()))
    if reason is None and args is not None and args.state > STATES:
        return f"holds states of at most {STATES} numbers in registers, not {args.state}"
    return reason


BACKEND = triton_backend(duality, duality_backward, _why_not, saves)
