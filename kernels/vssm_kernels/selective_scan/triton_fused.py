"""The selective scan on a GPU: how the kernels of triton_kernels.py are launched.

One program walks one (batch, direction, block of channels), or where these are few, one chunk of its steps. The
backward goes back group by group and needs the state before each group. With one or two states per channel the forward
saves these, if a backward may follow. More states would take too much memory: nothing is saved then, and the backward
first runs the recurrence again, which writes the states and dC. dB and dC are sums over channels; they are written per
block of channels and added up afterwards in a fixed order, without atomics, so two runs are bit-equal. All arithmetic
is float32, except that the terms of these two sums have 11 bits (TF32) for half precision inputs, which is more than
the inputs have, and 22 bits for float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vssm_kernels.direction_sum import sum_blocks, sum_directions
from vssm_kernels.gpu import Launcher, cdiv, triton_backend, why_no_triton
from vssm_kernels.orders import output_rows
from vssm_kernels.saturation import saturate
from vssm_kernels.selective_scan.arguments import ScanArguments

try:
    import triton

    from vssm_kernels.selective_scan import triton_chunk_kernels as chunk_kernels
    from vssm_kernels.selective_scan import triton_kernels as kernels
except ImportError:  # why_no_triton reports it
    triton = None


# PROGRAMS fill a large GPU. With fewer, sequences are cut into chunks where that pays: chunks walk three times, and
# their extra launches take as long as CUT_STEPS steps. They are cut into CUT_PROGRAMS, because the kernel that finds
# the ends of chunks takes more registers.
PROGRAMS, CUT_STEPS, CUT_PROGRAMS = 2048, 1024, 1536
# A chunk has a multiple of CHUNK_UNIT steps, which every group length divides; a sequence has at most CHUNKS chunks.
CHUNK_UNIT, CHUNKS = 32, 128
CARRY_TILE = 2048  # numbers of a program that carries states from chunk to chunk
FEW_STATES = 2  # states per channel that the forward saves for the backward


class _Tile(NamedTuple):
    """Tile sizes, chosen by timing Vim and VMamba shapes on an H200."""

    block_c: int
    block_n: int
    unroll: int  # steps of a group
    warps: int
    vector: int  # neighbouring channels of a thread

    def options(self) -> dict[str, int | None]:
        return {
            "BLOCK_C": self.block_c,
            "BLOCK_N": self.block_n,
            "UNROLL": self.unroll,
            "VECTOR": self.vector,
            "num_warps": self.warps,
        }


def _forward_launch(channels: int, state: int, sequences: int) -> _Tile:
    """`sequences` are those of a batch and all directions."""
    block_n = 1 << (state - 1).bit_length()
    block_c = max(16, min(64, 1024 // block_n, 1 << (channels - 1).bit_length()))
    if block_n <= 2:
        if channels % 128 == 0 and _many(sequences, channels, 128):
            return _Tile(128, block_n, unroll=4, warps=1, vector=2)  # half the addresses
        return _Tile(block_c, block_n, unroll=8, warps=1, vector=2)
    warps = max(1, min(8, block_n * block_c // 1024))
    return _Tile(block_c, block_n, unroll=1, warps=warps, vector=2)


def _launches(channels: int, state: int, sequences: int) -> tuple[_Tile, _Tile]:
    """Of the walk forwards and of the walk back; one's group length divides the other's."""
    forward = _forward_launch(channels, state, sequences)
    if forward.block_n <= 2:
        block_c = min(64, forward.block_c)
        return forward, forward._replace(block_c=block_c, unroll=4 if _many(sequences, channels, block_c) else 8)
    block_c = max(16, min(forward.block_c, 512 // forward.block_n))
    warps = max(1, min(8, forward.block_n * block_c // 512))
    return forward, _Tile(block_c, forward.block_n, unroll=4, warps=warps, vector=1)


def _many(sequences: int, channels: int, block_c: int) -> bool:
    """Whether there are more than PROGRAMS / 2 programs, so that a large GPU does not run all of them at once."""
    return 2 * sequences * cdiv(channels, block_c) > PROGRAMS


class _Chunks(NamedTuple):
    """How a sequence is cut into chunks that programs walk at the same time."""

    steps: int  # of each chunk but the last
    count: int


def _chunks(args: ScanArguments, tile: _Tile) -> _Chunks:
    programs = max(1, args.batch * args.directions * cdiv(args.channels, tile.block_c))
    worth = programs * (3 * args.steps + CUT_STEPS) <= PROGRAMS * args.steps
    # Tokens that are visited twice are written in turn, by one program.
    cut = worth and args.C is not None and not args.repeats
    count = min(CHUNKS, CUT_PROGRAMS // programs) if cut else 1
    steps = cdiv(cdiv(args.steps, count), CHUNK_UNIT) * CHUNK_UNIT
    return _Chunks(steps, cdiv(args.steps, steps))


class _Checkpoints(NamedTuple):
    """How the states lie that a walk forwards saves for the one back; see `checkpoint_tile` of triton_kernels.py."""

    every: int  # steps; 0 for none
    groups: int
    units: int
    unit: int  # channels


def _checkpoint_shape(args: ScanArguments, forward: _Tile, back: _Tile) -> tuple[int, ...]:
    """(batch, directions, groups, units, numbers of a unit)."""
    longest = max(forward.unroll, back.unroll)
    groups = cdiv(args.steps, longest) * (longest // back.unroll)
    units = cdiv(args.channels, forward.block_c) * (forward.block_c // back.block_c)
    return args.batch, args.directions, groups, units, back.block_n * back.block_c


def saves(args: ScanArguments) -> tuple[tuple[int, ...], torch.dtype] | None:
    """States of few numbers are saved for the backward, which computes others once more."""
    if args.state > FEW_STATES:
        return None
    launches = _launches(args.channels, args.state, args.batch * args.directions)
    return _checkpoint_shape(args, *launches), torch.float32


def plan_scan(args: ScanArguments, save: bool) -> Callable[[ScanArguments], tuple[Tensor, Tensor | None]]:
    """The output, and the states that are saved for the backward; see `saves`."""
    operands = _Operands(args)
    tile, back = _launches(args.channels, args.state, args.batch * args.directions)
    saved_states = saves(args) if save else None
    shape_of_saved = None if saved_states is None else saved_states[0]
    if shape_of_saved is None:
        checkpoints = _Checkpoints(every=0, groups=0, units=0, unit=tile.block_c)
    else:
        checkpoints = _Checkpoints(back.unroll, *shape_of_saved[2:4], back.block_c)
    walk = _plan_walk(args, operands, tile, _chunks(args, tile), checkpoints, again=False)
    shape, dtype, device, repeats = args.output_shape, args.output_dtype, args.device, args.repeats
    summed = torch.float32 if repeats else dtype  # rows visited twice

    def run(args: ScanArguments) -> tuple[Tensor, Tensor | None]:
        tensors, _ = operands.of(args)
        y = output_rows(args.order, shape, summed, device)
        unused = tensors[1]  # a pointer that the kernel does not follow
        saved = None
        if shape_of_saved is not None:
            saved = torch.empty(shape_of_saved, dtype=torch.float32, device=device)
        walk(tensors, y, unused, unused, unused if saved is None else saved)
        return saturate(y, dtype) if repeats else y, saved

    return run


def plan_scan_backward(
    args: ScanArguments, gradient: Tensor
) -> Callable[[ScanArguments, Tensor], tuple[Tensor | None, ...]]:
    """Gradients, with the states that `scan` saved, or by walking twice."""
    batch, _, directions, channels = row_shape = args.row_shape
    state, device, repeats, shared_input = args.state, args.u.device, args.repeats, args.shared_input
    again, tile = _launches(channels, state, batch * directions)
    operands, chunks, pitch = _Operands(args, gradient), _chunks(args, again), _pitch(channels)
    shape = _checkpoint_shape(args, again, tile)
    walk_again = args.states is None or args.states.shape != shape  # saved by another backend: ignored
    checkpoints = _Checkpoints(tile.unroll, *shape[2:4], tile.block_c)
    walk = _plan_walk(args, operands, again, chunks, checkpoints, again=True) if walk_again else None
    carry = _plan_carry(args, operands, again, chunks, adjoint=True) if chunks.count > 1 else None
    blocks = cdiv(channels, tile.block_c)
    shape_of_dC = (cdiv(channels, again.block_c) if walk_again else blocks, *row_shape[:3], state)
    rates, per_channel = directions * state * pitch, directions * channels
    launch = Launcher(
        kernels.backward_kernel,
        (batch * directions * chunks.count * blocks,),
        **operands.numbers,
        zero=0.0,
        blocks=blocks,
        pitch=pitch // tile.vector,
        groups=checkpoints.groups,
        units=checkpoints.units,
        unit_size=tile.block_n * tile.block_c // tile.vector,
        chunk=chunks.steps,
        chunks=chunks.count,
        ADD=repeats,
        CHUNKED=chunks.count > 1,
        WITH_C=args.C is not None and not walk_again,
        **tile.options(),
    )

    def rows(args: ScanArguments, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return output_rows(args.order, shape, torch.float32 if repeats else dtype, device)

    def run(args: ScanArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors, dy = operands.of(args, gradient)
        states = args.states if walk is None else torch.empty(shape, dtype=torch.float32, device=device)
        dC = rows(args, *shape_of_dC)
        if walk is not None:
            walk(tensors, tensors[1], dy, dC, states)
        du, ddelta = rows(args, *row_shape, dtype=args.u.dtype), rows(args, *row_shape, dtype=args.delta.dtype)
        dB = rows(args, blocks, *row_shape[:3], state)
        shares = torch.empty((batch * chunks.count, rates + 2 * per_channel), dtype=torch.float32, device=device)
        carried = tensors[1] if carry is None else carry(tensors, dy)
        launch(*tensors, states, carried, dy, du, ddelta, dB, dC, shares)
        if shared_input:
            du = sum_directions(du)
        total = shares.sum(0)
        dA = total[:rates].view(directions, state, pitch)[..., :channels].transpose(1, 2)
        dD, dbias = total[rates:].view(2, directions, channels)
        dB, dC = sum_blocks(dB, args.B.dtype), None if args.C is None else sum_blocks(dC, args.C.dtype)
        return args.cast(du, ddelta, dA, dB, dC, dD, dbias)

    return run


def _plan_walk(
    args: ScanArguments, operands: _Operands, tile: _Tile, chunks: _Chunks, checkpoints: _Checkpoints, *, again: bool
) -> Callable[[_Tensors, Tensor, Tensor, Tensor, Tensor], None]:
    """The walk forwards: the outputs into y, or `again` for the backward, the gradient of C into dC; and the states."""
    blocks = cdiv(args.channels, tile.block_c)
    carry = _plan_carry(args, operands, tile, chunks) if chunks.count > 1 else None
    launch = Launcher(
        kernels.forward_kernel,
        (args.batch * args.directions * chunks.count * blocks,),
        **operands.numbers,
        blocks=blocks,
        pitch=_pitch(args.channels) // tile.vector,
        groups=checkpoints.groups,
        units=checkpoints.units,
        unit_size=tile.block_n * checkpoints.unit // tile.vector,
        chunk=chunks.steps,
        chunks=chunks.count,
        ADD=args.repeats,
        CHUNKED=chunks.count > 1,
        CHECKPOINT=checkpoints.every,
        AGAIN=again,
        UNIT=checkpoints.unit,
        **tile.options(),
    )

    def run(tensors: _Tensors, y: Tensor, dy: Tensor, dC: Tensor, states: Tensor) -> None:
        launch(*tensors, y, dy, dC, states, states if carry is None else carry(tensors))

    return run


def _plan_carry(
    args: ScanArguments, operands: _Operands, tile: _Tile, chunks: _Chunks, *, adjoint: bool = False
) -> Callable[..., Tensor]:
    """The state that every chunk receives from those before it; adjoint, the state's gradient from those after it."""
    kernel, numbers = chunk_kernels.ends_kernel, dict(operands.numbers)
    if adjoint:  # the same walk, from the end, of the output's gradient in place of u and C in place of B
        for name, other in (("u", "dy"), ("B", "C")):
            for part in ("_batch", "_token", "_direction"):
                numbers[name + part] = numbers[other + part]
    blocks, pitch, device = cdiv(args.channels, tile.block_c), _pitch(args.channels), args.u.device
    size = args.state * pitch
    shape = (args.batch, chunks.count, args.directions, size)
    find_ends = Launcher(
        kernel,
        (args.batch * chunks.count * args.directions * blocks,),
        **{name: number for name, number in numbers.items() if name in kernel.arg_names},
        blocks=blocks,
        pitch=pitch // tile.vector,
        chunk=chunks.steps,
        chunks=chunks.count,
        ADJOINT=adjoint,
        **tile.options(),
    )
    count = 1 << (chunks.count - 1).bit_length()
    block = CARRY_TILE // count
    carry = Launcher(
        chunk_kernels.carry_kernel,
        (args.batch * args.directions * cdiv(size, block),),
        directions=args.directions,
        size=size,
        chunks=chunks.count,
        ADJOINT=adjoint,
        CHUNKS=count,
        BLOCK=block,
    )

    def run(tensors: _Tensors, dy: Tensor | None = None) -> Tensor:
        u, delta, A, B, C, _, bias, order = tensors
        if dy is not None:
            u, B = dy, C
        ends, decays, carried = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(3))
        find_ends(u, delta, A, B, bias, order, ends, decays)
        carry(ends, decays, carried)
        return carried

    return run


# u, delta, A, B, C, D, the bias and the order's table, which every kernel takes first. Where one is absent its pointer
# is that of another, which the kernel does not follow.
_Tensors = tuple[Tensor, ...]


class _Operands:
    """What kernels take of arguments of one kind: their tensors, and `numbers`, their sizes, strides and switches."""

    def __init__(self, args: ScanArguments, gradient: Tensor | None = None):
        rows = (args.u, args.delta, args.B, args.C)
        self.has_contiguous_rows = all(t is None or t.stride(-1) == 1 or t.shape[-1] == 1 for t in rows)
        self.rates_as_they_are = not args.channels % 2 and args.A.dtype == torch.float32
        self.rates_as_they_are &= args.A.transpose(1, 2).is_contiguous()
        self.numbers = self._numbers(args, gradient)

    def of(self, args: ScanArguments, gradient: Tensor | None = None) -> tuple[_Tensors, Tensor | None]:
        """The tensors, and the output's gradient with rows that kernels read."""
        if not self.has_contiguous_rows:
            args = _with_contiguous_rows(args)
        u, delta, A, B, C, D, bias, *_ = args
        if gradient is not None and (C is None or gradient.stride(-1) != 1):
            gradient = gradient.contiguous()  # states are read as rows of channels times state
        tensors = (
            u,
            delta,
            A if self.rates_as_they_are else _rates(args),
            B,
            B if C is None else C,
            A if D is None else D.float().contiguous(),
            A if bias is None else bias.float().contiguous(),
            A if args.order is None else args.order.table,
        )
        return tensors, gradient

    def _numbers(self, args: ScanArguments, gradient: Tensor | None) -> dict[str, int | bool]:
        (u, delta, _, B, C, *_), dy = self.of(args, gradient)
        dy = delta if dy is None else dy
        args, strides = _with_contiguous_rows(args), {}
        for name, tensor in (("u", u), ("delta", delta), ("B", B), ("C", C), ("dy", dy)):
            direction = 0 if name == "u" and args.shared_input else tensor.stride(2)
            batch_stride, token_stride = tensor.stride()[:2]
            strides |= {f"{name}_batch": batch_stride, f"{name}_token": token_stride, f"{name}_direction": direction}
        return {
            "tokens": args.tokens,
            "batch": args.batch,
            "directions": args.directions,
            "channels": args.channels,
            "state": args.state,
            "steps": args.steps,
            "segment": max(1, args.segment),
            **strides,
            **_switches(args, dy, list(strides.values())),
        }


def _pitch(channels: int) -> int:
    """Row length of (state, channels) buffers: even, as `tile_offsets` asks."""
    return channels + channels % 2


def _rates(args: ScanArguments) -> Tensor:
    """A as (directions, state, pitch): channels run fastest, as in every other operand."""
    rates = args.A.float().transpose(1, 2)
    if args.channels % 2:
        rates = torch.nn.functional.pad(rates, (0, 1))
    return rates.contiguous()


def _switches(args: ScanArguments, dy: Tensor, strides: list[int]) -> dict[str, bool | int]:
    rows = [_place(tensor) for tensor in (args.u, args.delta, dy)]
    C = args.B if args.C is None else args.C
    states = [_place(args.B), _place(C)]
    row = max(math.prod(args.output_shape[2:]), *strides[1::3])  # the longest step from token to token
    return {
        "HAS_ORDER": args.order is not None,
        "HAS_D": args.D is not None,
        "HAS_BIAS": args.delta_bias is not None,
        "HAS_C": args.C is not None,
        "BESIDE": _beside(args),
        "SEGMENTED": args.segment > 0,
        "ROW_ALIGN": math.gcd(args.channels, *strides[:6], *strides[12:], *rows, 2),
        "STATE_ALIGN": math.gcd(args.state, *strides[6:12], *states, 8),
        "WIDE": args.tokens * row >= 2**31,  # whether a sequence needs 64-bit offsets
        "PARTS": 0 if torch.version.hip is not None else 2 if torch.float32 in {args.B.dtype, C.dtype} else 1,
    }


def _beside(args: ScanArguments) -> bool:
    """Whether B and C have one state of bfloat16 each, side by side at even places, as one projection makes them."""
    B, C = args.B, args.C
    if C is None or args.state > 1 or B.dtype != torch.bfloat16 or C.dtype != B.dtype:
        return False
    even = all(place % 2 == 0 for place in (_place(B), *B.stride()[:3]))
    return even and _place(C) == _place(B) + 1 and C.stride()[:3] == B.stride()[:3]


def _place(tensor: Tensor) -> int:
    """Of the first element, in elements. Its storage, of another library say, need not begin at an even one."""
    return tensor.data_ptr() // tensor.element_size()


def _with_contiguous_rows(args: ScanArguments) -> ScanArguments:
    rows = {"u": args.u, "delta": args.delta, "B": args.B, "C": args.C}
    broken = {name: t for name, t in rows.items() if t is not None and t.stride(-1) != 1 and t.shape[-1] > 1}
    return args._replace(**{name: t.contiguous() for name, t in broken.items()}) if broken else args


def _why_not(args: ScanArguments | None) -> str | None:
    return why_no_triton(*(() if args is None else args.tensors()))


BACKEND = triton_backend(plan_scan, plan_scan_backward, _why_not, saves)
