"""State-space duality along scan orders: outputs and every gradient of every backend against the recurrence."""

from __future__ import annotations

import pytest
import torch
from on_backends import DEVICE, device_of, require
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vssm_kernels import selective_scan, ssd, use_backend
from vssm_kernels.orders import ScanTable
from vssm_kernels.ssd import OP, reference
from vssm_kernels.ssd.arguments import SSDArguments
from vssm_kernels.testing import TOLERANCE, assert_close, run_backend

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias", "initial")
FAST = [backend for backend in OP.backends if backend is not OP.reference]
every_fast = pytest.mark.parametrize("backend", FAST, ids=lambda backend: backend.name)


def make_arguments(
    batch: int = 1,
    tokens: int = 70,
    directions: int = 2,
    heads: int = 2,
    channels: int = 16,
    groups: int = 1,
    state: int = 16,
    *,
    own_inputs: bool = False,
    initial: bool = False,
    order: Tensor | None = None,
    shift: bool = False,
    merge: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> SSDArguments:
    """Step sizes about 0.05 and rates of 1 to 16, as in a trained model; what is one number a head is never narrow."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    of_heads, of_states = (directions, heads), (batch, tokens, directions, groups, state)
    rates = 1 + 15 * torch.rand(of_heads, generator=generator, dtype=torch.float64)
    return SSDArguments(
        u=normal(batch, tokens, *((directions,) if own_inputs else ()), heads, channels),
        delta=normal(batch, tokens, *of_heads),
        A=-rates.to(device, wide),
        B=normal(*of_states),
        C=normal(*of_states),
        D=None if shift else normal(*of_heads, dtype=wide),
        delta_bias=normal(*of_heads, dtype=wide) - 3,
        initial=normal(batch, *of_heads, channels, state) if initial else None,
        order=None if order is None else ScanTable.of(order, tokens, device),
        shift=shift,
        merge=merge,
    )


def walks(tokens: int = 70, directions: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.stack([torch.randperm(tokens, generator=generator) for _ in range(directions)])


def holes_and_repeats(tokens: int = 70, directions: int = 2) -> Tensor:
    return torch.randint(-1, tokens, (directions, tokens + 70), generator=torch.Generator().manual_seed(1))


CASES = {
    "raster": {"batch": 2, "directions": 1, "heads": 4, "groups": 2},
    "one step": {"tokens": 1},
    "one head, one direction": {"directions": 1, "heads": 1},
    "along an order": {"order": walks()},
    "holes and repeats": {"order": holes_and_repeats(), "own_inputs": True},
    "shifted along an order, merged": {"order": walks(), "shift": True, "merge": True},
    "shifted, holes and repeats": {"order": holes_and_repeats(), "shift": True},
    "own inputs, initial states": {"own_inputs": True, "initial": True},
    "initial states, shifted": {"initial": True, "shift": True},
    "several chunks": {"tokens": 200, "batch": 1, "merge": True, "initial": True},
    "segments, shifted": {"tokens": 260, "batch": 1, "directions": 1, "heads": 1, "shift": True, "initial": True},
    "odd sizes": {"channels": 7, "state": 5, "heads": 3},
    "blocks of channels": {"channels": 72, "state": 20, "heads": 1},
}


def widened(args: SSDArguments) -> SSDArguments:
    """In float64, on the CPU."""
    tensors = (None if tensor is None else tensor.double().cpu() for tensor in args.tensors())
    order = args.order and ScanTable.of(args.order.table.cpu(), args.tokens)
    return SSDArguments(*tensors, order=order, shift=args.shift, merge=args.merge)


def expected(args: SSDArguments, gradient: Tensor) -> list[Tensor | None]:
    """Output and gradients of the recurrence in float64, by autograd."""
    args = widened(args)
    leaves = [None if tensor is None else tensor.requires_grad_() for tensor in args.tensors()]
    output = reference.recurrence(args)[0]
    found = iter(torch.autograd.grad(output, [leaf for leaf in leaves if leaf is not None], gradient.double().cpu()))
    return [output, *(None if leaf is None else next(found) for leaf in leaves)]


def gradient_for(args: SSDArguments) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(args.output_shape, generator=generator).to(args.device, args.u.dtype)


# Each case wide, and in one of the narrow types in turn.
NARROW = (torch.float16, torch.bfloat16)
TYPED = [(case, dtype) for i, case in enumerate(CASES) for dtype in (torch.float32, NARROW[i % 2])]


@every_fast
@pytest.mark.parametrize(("case", "dtype"), TYPED, ids=str)
def test_output_and_every_gradient_are_those_of_the_recurrence_in_float64(case, dtype, backend):
    args = make_arguments(**CASES[case], dtype=dtype, device=device_of(backend))
    require(backend, args)
    gradient = gradient_for(args)
    output, gradients = run_backend(backend, args, gradient)
    for name, one, want in zip(("output", *NAMES), (output, *gradients), expected(args, gradient), strict=True):
        assert (one is None) == (want is None), name
        if one is not None:
            given = args.u if name == "output" else getattr(args, name)
            assert one.dtype == given.dtype, name
            # That of A is a sum over the steps of both signs, which mostly cancel; what those of B and C are products
            # of is rounded once more.
            times = {"A": 5, "B": 2, "C": 2}.get(name, 1)
            assert_close(one.cpu(), want, name, tolerance=TOLERANCE[dtype] * times)


@every_fast
@pytest.mark.parametrize("case", ["raster", "several chunks", "holes and repeats"])
def test_products_keep_the_digits_of_what_large_steps_have_decayed(case, backend):
    """The logarithm of a decay is up to thousands here, and up to a million from the start of a chunk to its end."""
    args = make_arguments(**CASES[case], device=device_of(backend))
    require(backend, args)
    args = args._replace(delta=1000 * args.delta)
    gradient = gradient_for(args)
    output, gradients = run_backend(backend, args, gradient)
    for name, one, want in zip(("output", *NAMES), (output, *gradients), expected(args, gradient), strict=True):
        if one is not None:
            assert_close(one.cpu(), want, name, tolerance=1e-4)


@pytest.mark.parametrize("case", ["along an order", "shifted along an order, merged"])
def test_one_program_merges_all_directions_where_programs_are_many(case, monkeypatch):
    backend = next(backend for backend in FAST if backend.name == "triton")
    args = make_arguments(**{**CASES[case], "merge": True}, device=device_of(backend))
    require(backend, args)
    gradient = gradient_for(args)
    apart = run_backend(backend, args, gradient)
    monkeypatch.setattr("vssm_kernels.ssd.triton_fused.PROGRAMS", 1)
    together = run_backend(backend, args, gradient)
    for name, one, other in zip(("output", *NAMES), (together[0], *together[1]), (apart[0], *apart[1]), strict=True):
        if other is not None:
            assert_close(one, other, name)


@pytest.mark.parametrize("case", CASES)
def test_the_adjoint_of_the_recurrence_is_that_of_autograd(case):
    args = make_arguments(**CASES[case], dtype=torch.float64)
    gradient = gradient_for(args)
    found = (reference.recurrence(args)[0], *reference.recurrence_backward(args, gradient))
    for name, one, want in zip(("output", *NAMES), found, expected(args, gradient), strict=True):
        if want is not None:
            assert_close(one, want, name)


def test_a_head_is_a_selective_scan_whose_channels_share_their_decay():
    args = make_arguments(dtype=torch.float64, order=walks())
    A = args.A[:, :, None, None].expand(2, 2, 16, 16).flatten(1, 2)
    delta, D, bias = (
        each[..., None].expand(*each.shape, 16).flatten(-2) for each in (args.delta, args.D, args.delta_bias)
    )
    scanned = selective_scan(
        args.u.flatten(2), delta, A, args.B[:, :, :, 0], args.C[:, :, :, 0], D, delta_bias=bias, order=args.order
    )
    found = ssd(*args[:6], delta_bias=args.delta_bias, order=args.order)
    assert_close(found.flatten(3), scanned)


@pytest.mark.parametrize("steps", [-80.0, -20.0, 5.0], ids=str)
def test_far_step_sizes(steps):
    """Where nothing is forgotten, and where everything is at once."""
    args = make_arguments(tokens=200, dtype=torch.float64)
    args = args._replace(delta_bias=torch.full_like(args.delta_bias, steps))
    gradient = gradient_for(args)
    output, gradients = run_backend(OP.choose(args), args, gradient)
    for name, one, want in zip(("output", *NAMES), (output, *gradients), expected(args, gradient), strict=True):
        if want is not None:
            assert_close(one, want, name, tolerance=1e-8)


@every_fast
def test_two_runs_are_bit_equal(backend):
    args = make_arguments(tokens=300, order=walks(300), merge=True, initial=True, device=device_of(backend))
    require(backend, args)
    one, two = (run_backend(backend, args, gradient_for(args)) for _ in range(2))
    for first, second in zip((one[0], *one[1]), (two[0], *two[1]), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def call(*tensors: Tensor, **how) -> Tensor:
    *required, D, bias, initial = tensors
    return ssd(*required, D, delta_bias=bias, initial=initial, **how)


def output_and_gradients(function, args: SSDArguments, **how) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in args.tensors()]
    output = function(*leaves, **how)
    return [output, *torch.autograd.grad(output, leaves, gradient_for(args).to(output.dtype))]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_autocast_narrows_nothing(dtype, device):
    args = make_arguments(initial=True, device=device)
    with torch.autocast(device, dtype):
        found = output_and_gradients(call, args)
    for name, one, want in zip(("output", *NAMES), found, output_and_gradients(call, args), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, want, rtol=0, atol=0, msg=name)


def test_second_derivatives_forward_mode_and_vmap():
    args = make_arguments(1, 3, 1, 2, 2, 1, 2, dtype=torch.float64, initial=True)
    leaves = [tensor.requires_grad_() for tensor in args.tensors()]
    assert torch.autograd.gradcheck(call, leaves, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, leaves)


def test_compiles_and_has_shapes_on_the_meta_device():
    args = make_arguments(initial=True)
    order = walks().int()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for one, want in zip(
        output_and_gradients(compiled, args, order=order), output_and_gradients(call, args, order=order), strict=True
    ):
        assert_close(one, want)
    assert ssd(*make_arguments(device="meta")[:6]).shape == (1, 70, 2, 2, 16)


def test_a_trace_for_other_programs_holds_no_operator_of_ours():
    from vssm_kernels import standard_operations

    args, order = make_arguments(), walks().int()
    with standard_operations():
        traced = torch.jit.trace(lambda *tensors: ssd(*tensors, order=order), args[:6], check_trace=False)
    assert "vssm::" not in str(traced.graph)
    assert_close(traced(*args[:6]), ssd(*args[:6], order=order))


def test_opcheck():
    flat = OP.flatten(make_arguments(order=walks(), initial=True))
    flat = [each.requires_grad_() if isinstance(each, Tensor) and each.is_floating_point() else each for each in flat]
    torch.library.opcheck(OP.operator, (*flat, True))


def test_operations_are_those_of_the_recurrence():
    args = make_arguments(2, 70, 2, 4, 16, 2, 8)
    forward = 2 * (2 * 70 * 2 * 4 * 16 * (2 * 8 + 1))
    with FlopCounterMode(display=False) as counter:
        y = ssd(args.u.requires_grad_(), *args[1:6])
        assert counter.get_total_flops() == forward
        y.sum().backward()
        assert counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_do_not_fit_are_named(name):
    args = make_arguments(initial=True)
    args = args._replace(**{name: getattr(args, name)[..., 0]})
    with pytest.raises(ValueError, match=rf"^{name} has shape \(.*\); expected \("):
        call(*args.tensors())


def test_other_wrong_arguments_are_named():
    args = make_arguments(initial=True)
    with pytest.raises(ValueError, match=r"heads a multiple of groups; got .*heads=2, .*groups=3"):
        call(*args._replace(B=args.B[:, :, :, :1].expand(-1, -1, -1, 3, -1)).tensors())
    with pytest.raises(ValueError, match="shift leaves out what a token gives to itself, and D is that"):
        call(*args.tensors(), shift=True)
    with pytest.raises(ValueError, match=r"order has shape \(2, 70\); expected \(directions, steps\) = \(3, steps\)"):
        ssd(*make_arguments(directions=3)[:6], order=walks().int())


def test_the_reference_can_be_forced():
    args = make_arguments(tokens=5)
    with use_backend("reference"):
        one = ssd(*args[:6])
    assert_close(ssd(*args[:6]), one)


@pytest.mark.gpu
def test_the_gpu_chooses_the_kernel():
    assert OP.choose(make_arguments(device=DEVICE)).name == "triton"


def test_no_images_give_none():
    assert ssd(*make_arguments(batch=0)[:6]).shape == (0, 70, 2, 2, 16)
