"""The wavefront scan: the reference against loops over positions, and every backend against the reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from on_backends import DEVICE, device_of, require
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vssm_kernels import standard_operations, use_backend, wavefront_scan
from vssm_kernels.testing import assert_close, run_backend
from vssm_kernels.wavefront_scan import OP, native_cpu, reference, triton_fused
from vssm_kernels.wavefront_scan.arguments import WavefrontArguments

FAST = [native_cpu.BACKEND]
NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
OFFICIAL = json.loads((Path(__file__).parents[1] / "parity" / "mamba2d_ops.json").read_text())

# (batch, height, width, channels, state)
SHAPES = {
    "a map": (2, 5, 7, 20, 4),
    "one position": (1, 1, 1, 3, 2),
    "one row": (2, 1, 9, 5, 3),
    "one column": (2, 9, 1, 5, 3),
    "oblong": (1, 2, 13, 33, 16),
    "one state": (1, 6, 5, 8, 1),
}
every_shape = pytest.mark.parametrize("shape", SHAPES)
both_ways = pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reverse"])


def make_arguments(shape, dtype=torch.float32, device="cpu", reverse=False, options=True) -> WavefrontArguments:
    """Step sizes about 0.05 and rates from 1, as in a trained model."""
    batch, height, width, channels, state = SHAPES.get(shape, shape)
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    grid = (batch, height, width)
    wide = torch.promote_types(dtype, torch.float32)
    rates = torch.arange(1, state + 1.0).expand(2, channels, state)
    rows = [normal(*grid, channels), 0.5 * normal(*grid, 2, channels), normal(*grid, 2, state), normal(*grid, state)]
    u, delta, B, C = (each.to(device, dtype) for each in rows)
    A, D, bias = -rates * torch.exp(0.1 * normal(2, channels, state)), normal(channels), 0.5 * normal(2, channels) - 3
    A, D, bias = (each.to(device, wide) for each in (A, D, bias))
    if not options:
        D = bias = None
    return WavefrontArguments(u, delta, A, B, C, D, bias, reverse)


def loops(args: WavefrontArguments) -> Tensor:
    """The recurrence as the paper has it, position by position."""
    u, delta, A, B, C, D, bias, reverse = args
    if reverse:
        u, delta, B, C = (each.flip(1, 2) for each in (u, delta, B, C))
    delta = F.softplus(delta if bias is None else delta + bias)
    states, outputs = {}, []
    for i in range(u.shape[1]):
        for j in range(u.shape[2]):

            def way(way, before, i=i, j=j):
                step = delta[:, i, j, way, :, None]
                entering = step * B[:, i, j, way, None] * u[:, i, j, :, None]
                return entering if before is None else torch.exp(step * A[way]) * before + entering

            if i == 0:
                states[i, j] = way(1, states.get((i, j - 1)))
            elif j == 0:
                states[i, j] = way(0, states[i - 1, j])
            else:
                states[i, j] = (way(0, states[i - 1, j]) + way(1, states[i, j - 1])) / 2
            y = (states[i, j] * C[:, i, j, None]).sum(-1)
            outputs.append(y if D is None else y + D * u[:, i, j])
    y = torch.stack(outputs, 1).unflatten(1, u.shape[1:3])
    return y.flip(1, 2) if reverse else y


def leaves(args: WavefrontArguments) -> list[Tensor]:
    return [tensor for tensor in args.tensors() if tensor is not None]


def recorded(function, args: WavefrontArguments) -> list[Tensor]:
    """The output and all gradients."""
    tensors = [None if tensor is None else tensor.detach().requires_grad_() for tensor in args.tensors()]
    args = WavefrontArguments(*tensors, args.reverse)
    output = function(args)
    weights = torch.linspace(-1, 1, output.numel(), device=output.device).view(output.shape).to(output.dtype)
    return [output, *torch.autograd.grad(output, leaves(args), weights, allow_unused=True, materialize_grads=True)]


def op(args: WavefrontArguments) -> Tensor:
    return wavefront_scan(*args[:6], delta_bias=args.delta_bias, reverse=args.reverse)


@both_ways
@every_shape
def test_reference_against_loops_in_float64(shape, reverse):
    args = make_arguments(shape, torch.float64, reverse=reverse)
    found, expected = recorded(op, args), recorded(loops, args)
    with use_backend("reference"):
        by_autograd = recorded(op, args)
    for name, one, other, want in zip(("output", *NAMES), found, by_autograd, expected, strict=True):
        assert_close(one, want, name)
        assert_close(other, want, f"{name} by autograd")


def test_agrees_with_the_official_operator():
    """The record's inputs are drawn in its order, step sizes by projections of low rank."""
    for case in OFFICIAL["cases"]:
        batch, height, width, channels, state, rank = (case[name] for name in ("B", "H", "W", "E", "N", "dt_rank"))
        draw = np.random.Generator(np.random.PCG64(case["seed"]))

        def normal(*shape, draw=draw):
            return torch.from_numpy(draw.standard_normal(shape).astype(np.float32))

        u, *logs = normal(batch, height, width, channels), normal(channels, state), normal(channels, state)
        rows = (u @ normal(2 * rank + 3 * state, channels).T).split([rank, rank, state, state, state], -1)
        projections = [(normal(channels, rank), normal(channels)) for _ in range(2)]
        delta = torch.stack([rows[i] @ weight.T + bias for i, (weight, bias) in enumerate(projections)], -2)
        A = -torch.stack(logs).mul(0.5).exp()
        y = wavefront_scan(u, delta, A, torch.stack(rows[2:4], -2), rows[4], normal(channels))
        assert_close(y.flatten(), torch.tensor(case["y (B,H,W,E) flattened"]), tolerance=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@both_ways
@every_shape
@pytest.mark.parametrize("backend", FAST, ids=lambda backend: backend.name)
def test_agrees_with_reference(backend, shape, reverse, dtype, poisoned_memory):
    check_backend(backend, make_arguments(shape, dtype, device_of(backend), reverse))


# Small ones: Triton's interpreter takes half a second for a position.
TILED = {
    "tiles": ((1, 3, 5, 5, 2), True, torch.bfloat16),
    "strips": ((1, 2, 9, 3, 3), False, torch.float32),
    "one position": ((2, 1, 1, 20, 4), False, torch.float16),
}


@pytest.mark.parametrize("backend", [*FAST, triton_fused.BACKEND], ids=lambda backend: backend.name)
def test_a_column_in_contiguous_memory_with_another_stride(backend):
    """Torch calls a map of one column contiguous whatever the stride from column to column is."""
    args = make_arguments((1, 3, 1, 5, 2), torch.float32, device_of(backend), False)
    u = args.u.clone().as_strided(args.u.shape, (15, 5, 1, 1))
    assert u.is_contiguous()
    check_backend(backend, args._replace(u=u))


@pytest.mark.parametrize("case", TILED)
def test_triton_in_strips_and_tiles(case, poisoned_memory, monkeypatch):
    """Maps are cut into tiles where programs are few, to be seen here at a small size."""
    shape, reverse, dtype = TILED[case]
    monkeypatch.setattr(triton_fused, "PROGRAMS", 2 if case == "tiles" else 1)
    monkeypatch.setattr(triton_fused, "TILE", 2)
    check_backend(triton_fused.BACKEND, make_arguments(shape, dtype, DEVICE, reverse), again=DEVICE == "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("programs", [1, 1 << 20], ids=["whole maps", "tiles"])
@pytest.mark.parametrize("plain", [False, True], ids=["mamba2d", "odd sizes, reverse, without D and bias"])
def test_triton_on_a_gpu(plain, programs, dtype, poisoned_memory, monkeypatch):
    monkeypatch.setattr(triton_fused, "PROGRAMS", programs)
    shape = (3, 29, 17, 40, 12) if plain else (2, 56, 56, 64, 16)
    check_backend(triton_fused.BACKEND, make_arguments(shape, dtype, "cuda", reverse=plain, options=not plain))


def test_tiles_cover_a_map_and_come_after_what_they_need():
    args = make_arguments((1, 70, 41, 64, 16), device="meta")
    cut = triton_fused._cut(args, (128, 128), 4)
    assert cut.tile_rows > 1 and cut.tile_columns > 1
    done = set()
    for where in cut.diagonals(1, 8):
        diagonal, first, count = where["diagonal"], where["first"], where["count"]
        now = {(row, diagonal - row) for row in range(first, first + count)}
        assert where["grid"] == (8 * len(now),) and not now & done
        for row, column in now:
            assert row == 0 or (row - 1, column) in done
            assert column == 0 or (row, column - 1) in done
        done |= now
    assert done == {(i, j) for i in range(cut.tile_rows) for j in range(cut.tile_columns)}
    assert cut.tile_rows * cut.rows >= 70 and cut.tile_columns * cut.strips * cut.columns >= 41


@pytest.mark.parametrize("backend", FAST, ids=lambda backend: backend.name)
def test_without_options_and_with_other_strides(backend, poisoned_memory):
    args = make_arguments("a map", device=device_of(backend), options=False)
    check_backend(backend, args)
    turned = [args.u, args.delta, args.B, args.C]
    u, delta, B, C = (each.transpose(1, 2).contiguous().transpose(1, 2) for each in turned)
    shared = B[:, :, :, :1].expand(-1, -1, -1, 2, -1)  # Mamba2D's first version
    check_backend(backend, WavefrontArguments(u, delta, args.A, shared, C))
    beside = torch.cat([delta.flatten(3), B.flatten(3), C], -1)  # as one projection makes them
    delta, B, C = beside.split([40, 8, 4], -1)
    check_backend(backend, WavefrontArguments(u, delta.unflatten(-1, (2, -1)), args.A, B.unflatten(-1, (2, -1)), C))


def check_backend(backend, args, again=True):
    require(backend, args)
    gradient = torch.randn(args.u.shape, generator=torch.Generator().manual_seed(1)).to(args.u)
    output, gradients = run_backend(backend, args, gradient)
    expected, wanted = run_backend(reference.BACKEND, args, gradient)
    assert output.dtype == args.u.dtype
    assert_close(output, expected, "output")
    for name, one, want in zip(NAMES, gradients, wanted, strict=True):
        assert (one is None) == (want is None), name
        if want is not None:
            assert one.dtype == want.dtype
            assert_close(one, want, f"gradient of {name}")
    if again:
        second, gradients_again = run_backend(backend, args, gradient)
        for one, other in zip((output, *gradients), (second, *gradients_again), strict=True):
            assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("backend", FAST, ids=lambda backend: backend.name)
def test_far_step_sizes_and_an_empty_batch(backend):
    """Where softplus is nearly zero, and where it is the identity."""
    for steps in (-80.0, 30.0):
        args = make_arguments("a map", device=device_of(backend))
        check_backend(backend, args._replace(delta_bias=torch.full_like(args.delta_bias, steps)))
    args = make_arguments((0, 3, 4, 5, 2), device=device_of(backend))
    output, gradients = run_backend(backend, args, args.u)
    assert output.shape == (0, 3, 4, 5) and torch.equal(gradients[2], torch.zeros_like(args.A))


def test_a_position_reads_what_is_above_and_on_the_left_of_it():
    args = make_arguments((1, 4, 5, 3, 2))
    other = args.u.clone()
    other[0, 2, 1] += 1
    changed = (op(args) != op(args._replace(u=other))).any(-1)[0]
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[2:, 1:] = True
    assert torch.equal(changed, expected)
    changed = (op(args._replace(reverse=True)) != op(args._replace(u=other, reverse=True))).any(-1)[0]
    assert torch.equal(changed, torch.arange(4)[:, None].le(2) & torch.arange(5).le(1))


def test_second_derivatives_forward_mode_and_vmap():
    args = make_arguments((1, 2, 3, 2, 2), torch.float64)

    def of(*tensors):
        return op(WavefrontArguments(*tensors))

    tensors = [tensor.requires_grad_() for tensor in args.tensors()]
    assert torch.autograd.gradcheck(of, tensors, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(of, tensors)


def test_opcheck_compile_and_meta():
    args = make_arguments("a map")
    for tensor in args.tensors():
        tensor.requires_grad_()
    torch.library.opcheck(OP.operator, (*OP.flatten(args), True))
    compiled = torch.compile(wavefront_scan, fullgraph=True, backend="aot_eager")
    found = compiled(*args[:6], delta_bias=args.delta_bias, reverse=True)
    assert_close(found, op(args._replace(reverse=True)))
    assert op(make_arguments("a map", device="meta")).shape == (2, 5, 7, 20)


def test_in_standard_operations():
    args = make_arguments("a map")
    with standard_operations():
        traced = torch.jit.trace(lambda *tensors: op(WavefrontArguments(*tensors, True)), args.tensors())
    assert "vssm::" not in str(traced.inlined_graph)
    assert_close(traced(*args.tensors()), op(args._replace(reverse=True)))


def test_operations_are_those_of_two_scans():
    args = make_arguments("a map")
    leaf = args.u.requires_grad_()
    positions = leaf.numel()
    with FlopCounterMode(display=False) as counter:
        y = op(args)
        assert counter.get_total_flops() == 2 * positions * (2 * 9 * 4 + 1)
        y.sum().backward()
        assert counter.get_total_flops() == 6 * positions * (2 * 9 * 4 + 1)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_do_not_fit_are_named(name):
    args = make_arguments("a map")
    wrong = args._replace(**{name: getattr(args, name)[..., 0]})
    with pytest.raises(ValueError, match=rf"^{name} has shape \(.*\); expected \("):
        op(wrong)


def test_empty_maps_are_named():
    with pytest.raises(ValueError, match="height, width and channels must be at least 1"):
        op(make_arguments((1, 0, 4, 3, 2)))
