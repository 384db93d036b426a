"""State-space duality on a GPU: how the kernels of triton_kernels.py are launched.

One program walks one (batch, direction, head, block of channels), or where these are few, one segment of its chunks.
The forward saves the state before each chunk if a backward may follow, which then walks once, from the last chunk to
the first. Gradients that are sums over heads or blocks are written for each and added up afterwards in a fixed order,
without atomics, so two runs are bit-equal. Products of bfloat16 inputs are those of the tensor cores; of float16, whose
states could leave its range, they are TF32, with as many digits; of float32, three of TF32, with all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.direction_sum import sum_blocks, sum_directions
from vssm_kernels.gpu import Launcher, cdiv, triton_backend, why_no_triton
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
REGISTERS = 168  # of a thread of the forward
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


def plan_duality(args: SSDArguments, save: bool) -> Callable[[SSDArguments], tuple[Tensor, Tensor | None]]:
    """The output, and the states that are saved for the backward; see `saves`."""
    walk = _plan_forward(args, _Plan(args, backward_follows=save), save)

    def run(args: SSDArguments) -> tuple[Tensor, Tensor | None]:
        y, saved = walk(args, _tensors(args))
        return _of_tokens(y, args, args.u.dtype, merge=args.merge), saved

    return run


def plan_duality_backward(args: SSDArguments, gradient: Tensor) -> Callable[[SSDArguments, Tensor], tuple]:
    """Gradients of `args.tensors()`, with the states that the forward saved, or after walking forwards once more."""
    plan, floats = _Plan(args, True, _rows(args.per_direction(gradient))), {"dtype": torch.float32}
    tile, (shape, _) = plan.tile, saves(args)
    saved_here = args.states is not None and args.states.shape == shape  # else by another backend: ignored
    walk = None if saved_here else _plan_forward(args, plan, save=True)
    carry = _plan_carry(args, plan, adjoint=True) if tile.segments > 1 else None
    launch = Launcher(
        kernels.backward_kernel,
        plan.grid,
        **plan.numbers_for(kernels.backward_kernel),
        HAS_END=carry is not None,
        HAS_START=args.initial is not None,
        **tile.options,
    )
    shares_of_group = args.heads // args.groups * tile.blocks

    def run(args: SSDArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors, dy = _tensors(args), _rows(args.per_direction(gradient))
        u, delta, B, C, *of_heads = tensors
        saved = args.states if walk is None else walk(args, tensors)[1]
        dends = saved if carry is None else carry(args, (dy, delta, C, B, *of_heads))
        du = plan.rows(args, (), (args.heads, args.channels), like=args.u)
        ddelta = plan.rows(args, (tile.blocks,), (args.heads,), like=args.delta if tile.blocks == 1 else None)
        dB, dC = (plan.rows(args, (shares_of_group,), args.B.shape[3:], like=each) for each in (args.B, args.C))
        dstart, shares = saved, torch.empty((*shape[:4], tile.segments, 3), device=args.device, **floats)
        if args.initial is not None:
            dstart = torch.empty(shape[:4] + shape[5:], device=args.device, **floats)
        if args.batch:
            launch(u, delta, B, C, dy, *of_heads, dends, saved, du, ddelta, dB, dC, dstart, shares)
        dA, dD, dbias = shares.sum((0, 3, 4)).unbind(-1)
        ddelta, dB, dC = (
            _of_tokens(_sum_of_shares(each, torch.float32 if args.repeats else like.dtype), args, like.dtype)
            for each, like in ((ddelta, args.delta), (dB, args.B), (dC, args.C))
        )
        dinitial = None
        if args.initial is not None:  # (batch, directions, heads, blocks, state, channels of the block)
            dinitial = dstart.movedim(4, -1).flatten(3, 4)[..., : args.channels, : args.state]
        du = _of_tokens(du, args, args.u.dtype, merge=args.shared_input)
        return args.cast(du, ddelta, dA, dB, dC, dD, dbias, dinitial)

    return run


# u, delta, B, C, A, D, the bias and the order's table, which every kernel takes first; where one is absent its pointer
# is that of another, which the kernel does not follow.
_Tensors = tuple[Tensor, ...]
_Walk = Callable[[SSDArguments, _Tensors], Any]


def _plan_forward(args: SSDArguments, plan: _Plan, save: bool) -> _Walk:
    """What programs write, in rows, and the states that are saved."""
    shape, dtype = saves(args)
    carry = _plan_carry(args, plan) if plan.tile.segments > 1 else None
    tile, numbers = plan.tile, plan.numbers_for(kernels.forward_kernel)
    # Short chunks in bfloat16 fit into fewer registers than the compiler takes: then three programs run where two did.
    few = {"maxnreg": REGISTERS} if numbers["NARROW"] and tile.steps == LENGTH else {}
    launch = Launcher(
        kernels.forward_kernel,
        plan.grid,
        **numbers,
        HAS_START=carry is not None or args.initial is not None,
        SAVE=save,
        **tile.options,
        **few,
    )

    def run(args: SSDArguments, tensors: _Tensors) -> tuple[Tensor, Tensor | None]:
        starts = tensors[4]
        if carry is not None:
            starts = carry(args, tensors)
        elif args.initial is not None:
            starts = _as_tiles(args.initial, tile)
        saved = torch.empty(shape, dtype=dtype, device=args.device) if save else None
        y = plan.rows(args, (), (args.heads, args.channels), like=args.u)
        if args.batch:
            launch(*tensors, starts, y, starts if saved is None else saved)
        return y, saved

    return run


def _plan_carry(args: SSDArguments, plan: _Plan, adjoint: bool = False) -> _Walk:
    """The state that every segment starts from. Adjoint, given the output's gradient in place of u and C in place of B,
    it is the same walk from the end: the gradient of the state that every segment ends in."""
    tile, walks = plan.tile, (args.batch, args.directions, args.heads, plan.tile.blocks, plan.tile.segments)
    numbers = dict(plan.numbers)
    if adjoint:
        for name, other in (("u", "dy"), ("B", "C")):
            for key in [key for key in numbers if key.startswith(f"{name}_")]:
                numbers[key] = numbers[other + key[1:]]
    numbers |= {"SHIFT": numbers["SHIFT"] if adjoint else 0, "ADJOINT": adjoint}
    numbers = {name: number for name, number in numbers.items() if name in kernels.ends_kernel.arg_names}
    launch = Launcher(kernels.ends_kernel, plan.grid, **numbers, **tile.options)

    def run(args: SSDArguments, tensors: _Tensors) -> Tensor:
        u, delta, B, _, A, _, bias, order = tensors
        ends = torch.empty((*walks, tile.block_n, tile.block_p), dtype=torch.float32, device=args.device)
        totals = torch.empty(walks, dtype=torch.float32, device=args.device)
        if args.batch:
            launch(u, delta, B, A, bias, order, ends, totals)
        kept = decays_between(totals * math.log(2))
        if adjoint:
            before = (kept.mT @ ends.flatten(-2)).view_as(ends)
            return torch.cat([before[..., 1:, :, :], torch.zeros_like(before[..., :1, :, :])], -3)
        first = torch.zeros_like(ends[..., :1, :, :]) if args.initial is None else _as_tiles(args.initial, tile)
        return (kept @ torch.cat([first, ends[..., :-1, :, :]], -3).flatten(-2)).view_as(ends)

    return run


class _Plan:
    """How programs are cut for arguments of one kind, and the numbers that kernels take: sizes, strides, switches."""

    def __init__(self, args: SSDArguments, backward_follows: bool, gradient: Tensor | None = None):
        self.tile = _Tile.of(args, backward_follows)
        self.grid = (args.batch * args.directions * args.heads * self.tile.blocks * self.tile.segments,)
        # Tokens that are visited twice have a row for each visit, which are added up.
        self.row_count = args.steps if args.repeats else args.tokens
        self.numbers = self._numbers(args, gradient)

    def numbers_for(self, kernel: Any) -> dict[str, Any]:
        return {name: number for name, number in self.numbers.items() if name in kernel.arg_names}

    def rows(self, args: SSDArguments, before: tuple[int, ...], after: tuple[int, ...], like: Tensor | None) -> Tensor:
        """Memory for (*before, batch, rows, directions, *after)."""
        shape = (*before, args.batch, self.row_count, args.directions, *after)
        dtype = torch.float32 if like is None or args.repeats else like.dtype
        return output_rows(args.order, shape, dtype, args.device)

    def _numbers(self, args: SSDArguments, gradient: Tensor | None) -> dict[str, Any]:
        tile, strides = self.tile, {}
        rows = {"u": _rows(args.u), "delta": args.delta, "B": _rows(args.B), "C": _rows(args.C), "dy": gradient}
        for name, tensor in rows.items():
            if tensor is not None:
                # From batch to batch, token to token, direction to direction, and head to head or group to group.
                steps = list(tensor.stride()[:4])
                if name == "u" and args.shared_input:
                    steps = [*steps[:2], 0, steps[2]]
                names = ("batch", "token", "direction", "group" if name in "BC" else "head")
                strides |= {f"{name}_{of}": step for of, step in zip(names, steps, strict=True)}
        longest = max(math.prod(args.row_shape[2:]), *(step for name, step in strides.items() if "token" in name))
        return {
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
        }


def _tensors(args: SSDArguments) -> _Tensors:
    A = args.A.float().contiguous()
    D, bias = (A if tensor is None else tensor.float().contiguous() for tensor in (args.D, args.delta_bias))
    order = A if args.order is None else args.order.table
    return _rows(args.u), args.delta, _rows(args.B), _rows(args.C), A, D, bias, order


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _as_tiles(initial: Tensor, tile: _Tile) -> Tensor:
    """(batch, directions, heads, channels, state) as (batch, directions, heads, blocks, 1, state, channels)."""
    channels, state = initial.shape[-2:]
    filled = F.pad(initial.float(), (0, tile.block_n - state, 0, tile.blocks * tile.block_p - channels))
    return filled.unflatten(-2, (tile.blocks, 1, tile.block_p)).mT.contiguous()


def _sum_of_shares(shares: Tensor, dtype: torch.dtype) -> Tensor:
    return shares[0] if len(shares) == 1 else sum_blocks(shares, dtype)


def _of_tokens(rows: Tensor, args: SSDArguments, dtype: torch.dtype, merge: bool = False) -> Tensor:
    """(batch, rows, directions, ...) as (batch, tokens, directions, ...), or with merge without the directions."""
    if args.repeats:
        token = args.order.table.long()
        batch, direction = (torch.arange(size, device=args.device) for size in (args.batch, args.directions))
        sums = rows.new_zeros(args.batch, args.directions, args.tokens + 1, *rows.shape[3:])
        places = batch[:, None, None], direction[:, None], torch.where(token < 0, args.tokens, token)
        sums.index_put_(places, rows.transpose(1, 2), accumulate=True)  # on a GPU in a fixed order
        rows = saturate(sums[:, :, :-1].transpose(1, 2).contiguous(), dtype)
    if merge:
        return sum_directions(rows.flatten(3)).unflatten(2, rows.shape[3:])
    return rows


def _why_not(args: SSDArguments | None) -> str | None:
    reason = why_no_triton(*(() if args is None else args.tensors()))
    if reason is None and args is not None and args.state > STATES:
        return f"holds states of at most {STATES} numbers in registers, not {args.state}"
    return reason


BACKEND = triton_backend(plan_duality, plan_duality_backward, _why_not, saves)
