"""The selective scan on a GPU: how the kernels of triton_kernels.py are launched.

One program walks one (batch, direction, block of channels), or a chunk of its steps where there are few of these. The
backward walks back through groups of steps, and needs the state before each. One or two states are kept by the forward
if a backward may follow. More would take too much memory: then nothing is stored between forward and backward, which
first runs the recurrence again, writing these states, and dC, to memory. dB and dC, sums over channels, are written per
block of channels and added up afterwards, in a fixed order: no atomics, so two runs are bit-equal. All arithmetic is
float32, but for the terms of those two sums: of half precision inputs they keep 11 bits (TF32), which is finer than the
inputs, of float32 twice as many.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vssm_kernels.direction_sum import sum_directions
from vssm_kernels.gpu import cdiv, triton_backend, why_no_triton
from vssm_kernels.orders import order_facts, output_rows
from vssm_kernels.saturation import saturate
from vssm_kernels.selective_scan.arguments import ScanArguments

try:
    import triton

    from vssm_kernels.selective_scan import triton_chunk_kernels as chunk_kernels
    from vssm_kernels.selective_scan import triton_kernels as kernels
except ImportError:  # why_no_triton says so
    triton = None


# So many programs fill a large GPU. Fewer sequences are cut where that is worth walking three times, and launches that
# take as long as so many steps; then into so many programs, as those that find the ends of chunks take more registers.
PROGRAMS, CUT_STEPS, CUT_PROGRAMS = 2048, 1024, 1536
# Chunks have a multiple of so many steps, which every launch's groups divide, and a sequence at most so many chunks.
CHUNK_UNIT, CHUNKS = 32, 128
CARRY_TILE = 2048  # numbers of a program that carries states from chunk to chunk
FEW_STATES = 2  # so few are kept for the backward


class _Launch(NamedTuple):
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


def _forward_launch(channels: int, state: int, sequences: int) -> _Launch:
    """`sequences` are those of a batch and all directions."""
    block_n = 1 << (state - 1).bit_length()
    block_c = max(16, min(64, 1024 // block_n, 1 << (channels - 1).bit_length()))
    if block_n <= 2:
        if channels % 128 == 0 and _many(sequences, channels, 128):
            return _Launch(128, block_n, unroll=4, warps=1, vector=2)  # half the addresses
        return _Launch(block_c, block_n, unroll=8, warps=1, vector=2)
    warps = max(1, min(8, block_n * block_c // 1024))
    return _Launch(block_c, block_n, unroll=1, warps=warps, vector=2)


def _launches(channels: int, state: int, sequences: int) -> tuple[_Launch, _Launch]:
    """Of the walk forwards, the first or again, and of the walk back; the groups of one divide the other's."""
    forward = _forward_launch(channels, state, sequences)
    if forward.block_n <= 2:
        block_c = min(64, forward.block_c)
        return forward, forward._replace(block_c=block_c, unroll=4 if _many(sequences, channels, block_c) else 8)
    block_c = max(16, min(forward.block_c, 512 // forward.block_n))
    warps = max(1, min(8, forward.block_n * block_c // 512))
    return forward, _Launch(block_c, forward.block_n, unroll=4, warps=warps, vector=1)


def _many(sequences: int, channels: int, block_c: int) -> bool:
    """Whether there are so many programs that a GPU with half of them at once would not hold all."""
    return 2 * sequences * cdiv(channels, block_c) > PROGRAMS


class _Chunks(NamedTuple):
    """How a sequence is cut."""

    steps: int  # of each chunk but the last
    count: int


def _chunks(args: ScanArguments, launch: _Launch) -> _Chunks:
    programs = args.batch * args.directions * cdiv(args.channels, launch.block_c)
    worth = programs * (3 * args.steps + CUT_STEPS) <= PROGRAMS * args.steps
    # Tokens that are visited twice are written in turn, by one program.
    cut = worth and args.C is not None and not order_facts(args.order, args.tokens).repeats
    count = min(CHUNKS, CUT_PROGRAMS // programs) if cut else 1
    steps = cdiv(cdiv(args.steps, count), CHUNK_UNIT) * CHUNK_UNIT
    return _Chunks(steps, cdiv(args.steps, steps))


class _Kept(NamedTuple):
    """States that a walk forwards keeps for the one back; see `checkpoint_tile` of triton_kernels.py."""

    states: Tensor
    every: int  # steps; 0 for none
    groups: int
    units: int
    unit: int  # channels


def _kept_shape(args: ScanArguments, forward: _Launch, back: _Launch) -> tuple[int, ...]:
    """(batch, directions, groups, units, numbers of a unit)."""
    longest = max(forward.unroll, back.unroll)
    groups = cdiv(args.steps, longest) * (longest // back.unroll)
    units = cdiv(args.channels, forward.block_c) * (forward.block_c // back.block_c)
    return args.batch, args.directions, groups, units, back.block_n * back.block_c


def _kept(states: Tensor, back: _Launch) -> _Kept:
    return _Kept(states, back.unroll, *states.shape[2:4], back.block_c)


def keeps(args: ScanArguments) -> int:
    """How many numbers `scan` keeps for the backward: states of few numbers, which else are computed once more."""
    launches = _launches(args.channels, args.state, args.batch * args.directions)
    return math.prod(_kept_shape(args, *launches)) if args.state <= FEW_STATES else 0


class _Given(NamedTuple):
    """What both kernels receive of the arguments."""

    operands: tuple[Tensor, ...]
    strides: tuple[int, ...]
    switches: dict[str, bool | int]


def _given(args: ScanArguments, gradient: Tensor) -> _Given:
    C = args.B if args.C is None else args.C
    strides = _strides(args, gradient)
    operands = (args.u, args.delta, _rates(args), args.B, C, *_small(args))
    return _Given(operands, strides, _switches(args, gradient, strides))


def scan(args: ScanArguments, states: Tensor | None = None) -> Tensor:
    """The output; `keeps` numbers of states go into `states`."""
    repeats = order_facts(args.order, args.tokens).repeats
    # Rows visited twice are summed in float32.
    y = output_rows(
        args.order, args.tokens, args.output_shape, torch.float32 if repeats else args.u.dtype, args.u.device
    )
    launch, back = _launches(args.channels, args.state, args.batch * args.directions)
    unused = args.delta  # a pointer that the kernel does not follow
    if states is None:
        kept = _Kept(unused, every=0, groups=0, units=0, unit=launch.block_c)
    else:
        kept = _kept(states.view(_kept_shape(args, launch, back)), back)
    given = _given(args, unused)
    _run_forward(args, given, launch, _chunks(args, launch), y, unused, unused, kept, again=False, add=repeats)
    return saturate(y, args.u.dtype)


def scan_backward(args: ScanArguments, gradient: Tensor, states: Tensor | None = None) -> tuple[Tensor | None, ...]:
    """Gradients, with the states that `scan` kept, or by walking twice."""
    repeats = order_facts(args.order, args.tokens).repeats
    batch, tokens, directions, channels = args.delta.shape
    again, launch = _launches(channels, args.state, batch * directions)
    device, pitch = args.u.device, _pitch(channels)
    if args.C is None or gradient.stride(-1) != 1:  # states are read as rows of channels times state
        gradient = gradient.contiguous()
    blocks, again_blocks = cdiv(channels, launch.block_c), cdiv(channels, again.block_c)
    tile = launch.block_n * launch.block_c

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    def rows(*shape: int, like: Tensor | None = None) -> Tensor:
        dtype = torch.float32 if repeats or like is None else like.dtype
        return output_rows(args.order, tokens, shape, dtype, device)

    given = _given(args, gradient)
    unused = args.delta
    chunks = _chunks(args, again)
    shape = _kept_shape(args, again, launch)
    walk_again = states is None
    kept = _kept(floats(*shape) if walk_again else states.view(shape), launch)
    dC = rows(again_blocks if walk_again else blocks, batch, tokens, directions, args.state)
    if walk_again:
        _run_forward(args, given, again, chunks, unused, gradient, dC, kept, again=True, add=repeats)

    du, ddelta = (rows(*args.delta.shape, like=like) for like in (args.u, args.delta))
    dB = rows(blocks, batch, tokens, directions, args.state)
    shares = floats(batch * chunks.count, directions, args.state + 2, pitch)
    carried = _carried(args, given, again, chunks, gradient) if chunks.count > 1 else unused
    kernels.backward_kernel[(batch * directions * chunks.count * blocks,)](
        *given.operands, kept.states, carried,
        gradient, du, ddelta, dB, dC, shares, 0.0,
        tokens, batch, directions, channels, args.state, args.steps, max(1, args.segment), blocks,
        pitch // launch.vector, kept.groups, kept.units, tile // launch.vector, *chunks,
        *given.strides,
        **given.switches, ADD=repeats, CHUNKED=chunks.count > 1, WITH_C=args.C is not None and not walk_again,
        **launch.options(),
    )  # fmt: skip
    if args.shared_input:
        du = sum_directions(du)
    dA, dD, dbias = shares.sum(0)[..., :channels].split([args.state, 1, 1], dim=1)
    gradients = (du, ddelta, dA.transpose(1, 2), dB.sum(0), dC.sum(0), dD.squeeze(1), dbias.squeeze(1))
    return tuple(
        None if tensor is None else value.to(tensor.dtype).contiguous()
        for value, tensor in zip(gradients, args.tensors(), strict=True)
    )


def _run_forward(
    args: ScanArguments,
    given: _Given,
    launch: _Launch,
    chunks: _Chunks,
    y: Tensor,
    gradient: Tensor,
    dC: Tensor,
    kept: _Kept,
    *,
    again: bool,
    add: bool,
) -> None:
    """The outputs into y, or again for the backward dC; and the states that are kept."""
    blocks = cdiv(args.channels, launch.block_c)
    carried = _carried(args, given, launch, chunks) if chunks.count > 1 else kept.states
    kernels.forward_kernel[(args.batch * args.directions * chunks.count * blocks,)](
        *given.operands,
        y, gradient, dC, kept.states, carried,
        args.tokens, args.batch, args.directions, args.channels, args.state, args.steps, max(1, args.segment), blocks,
        _pitch(args.channels) // launch.vector,
        kept.groups, kept.units, launch.block_n * kept.unit // launch.vector, *chunks,
        *given.strides,
        **given.switches, ADD=add, CHUNKED=chunks.count > 1, CHECKPOINT=kept.every, AGAIN=again,
        UNIT=kept.unit,
        **launch.options(),
    )  # fmt: skip


def _carried(
    args: ScanArguments, given: _Given, launch: _Launch, chunks: _Chunks, gradient: Tensor | None = None
) -> Tensor:
    """The state that every chunk receives from those before it; of a gradient, the state's gradient from behind it."""
    u, delta, rates, B, C, _, bias, order = given.operands
    u_strides, delta_strides, B_strides, C_strides, dy_strides = (given.strides[i : i + 3] for i in range(0, 15, 3))
    adjoint = gradient is not None
    if adjoint:
        u, u_strides, B, B_strides = gradient, dy_strides, C, C_strides
    blocks, pitch = cdiv(args.channels, launch.block_c), _pitch(args.channels)
    shape = (args.batch, chunks.count, args.directions, args.state * pitch)
    ends, decays, carried = (torch.empty(shape, dtype=torch.float32, device=args.u.device) for _ in range(3))
    known = chunk_kernels.ends_kernel.arg_names
    chunk_kernels.ends_kernel[(args.batch * chunks.count * args.directions * blocks,)](
        u, delta, rates, B, bias, order, ends, decays,
        args.directions, args.channels, args.state, args.steps, max(1, args.segment), blocks,
        pitch // launch.vector, *chunks,
        *u_strides, *delta_strides, *B_strides,
        **{name: switch for name, switch in given.switches.items() if name in known}, ADJOINT=adjoint,
        **launch.options(),
    )  # fmt: skip
    count = 1 << (chunks.count - 1).bit_length()
    block = CARRY_TILE // count
    chunk_kernels.carry_kernel[(args.batch * args.directions * cdiv(shape[-1], block),)](
        ends, decays, carried, args.directions, shape[-1], chunks.count, ADJOINT=adjoint, CHUNKS=count, BLOCK=block
    )
    return carried


def _pitch(channels: int) -> int:
    """Row length of (state, channels) buffers: even, as `tile_offsets` asks."""
    return channels + channels % 2


def _rates(args: ScanArguments) -> Tensor:
    """A as (directions, state, pitch): channels run fastest, as in every other operand."""
    rates = args.A.float().transpose(1, 2)
    if args.channels % 2:
        rates = torch.nn.functional.pad(rates, (0, 1))
    return rates.contiguous()


def _small(args: ScanArguments) -> list[Tensor]:
    """D, bias and order, each replaced by any tensor where it is absent (the kernel does not read it then)."""
    D, bias = (args.A if tensor is None else tensor.float().contiguous() for tensor in (args.D, args.delta_bias))
    return [D, bias, args.A if args.order is None else args.order.contiguous()]


def _strides(args: ScanArguments, gradient: Tensor) -> tuple[int, ...]:
    """(batch, token, direction) strides of u, delta, B, C and the gradient; the last dimension is contiguous."""
    u = (*args.u.stride()[:2], 0) if args.shared_input else args.u.stride()[:3]
    B = args.B.stride()[:3]
    C = B if args.C is None else args.C.stride()[:3]
    return (*u, *args.delta.stride()[:3], *B, *C, *gradient.stride()[:3])


def _switches(args: ScanArguments, gradient: Tensor, strides: tuple[int, ...]) -> dict[str, bool | int]:
    rows = [_place(tensor) for tensor in (args.u, args.delta, gradient)]
    states = [_place(tensor) for tensor in (args.B, args.C) if tensor is not None]
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
        "PARTS": 0 if torch.version.hip is not None else 2 if args.B.dtype == torch.float32 else 1,
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
    return args.replace(**{name: t.contiguous() for name, t in broken.items()}) if broken else args


def _why_not(args: ScanArguments | None) -> str | None:
    return why_no_triton(*(() if args is None else args.tensors()))


BACKEND = triton_backend(
    lambda args, *kept: scan(_with_contiguous_rows(args), *kept),
    lambda args, *given: scan_backward(_with_contiguous_rows(args), *given),
    _why_not,
    keeps=keeps,
)
