"""Every backend against the reference: outputs and all gradients, on every kind of order, length and state size."""

from __future__ import annotations

import math

import pytest
import torch
from on_backends import DEVICE, device_of, require
from torch import Tensor

import vssm_kernels
from vssm_kernels import ScanTable, selective_scan
from vssm_kernels.selective_scan import grouped, native_cpu, reference, triton_fused
from vssm_kernels.selective_scan.arguments import ScanArguments
from vssm_kernels.testing import assert_close, make_inputs, relative_error, run_backend

FAST = [native_cpu.BACKEND, grouped.BACKEND, triton_fused.BACKEND]
NAMES = ScanArguments._fields[:8]


def random_order(directions: int, tokens: int, steps: int) -> Tensor:
    """Empty steps, repeated tokens and tokens never visited."""
    return torch.randint(-1, tokens, (directions, steps), generator=torch.Generator().manual_seed(1)).int()


def permutations(directions: int, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.stack([torch.randperm(tokens, generator=generator) for _ in range(directions)]).int()


def permuted(directions: int, tokens: int, device: str) -> ScanTable:
    return ScanTable.of(permutations(directions, tokens), tokens, device)


# name: (sizes, order steps or None for raster, segment, with D and bias, states only)
CASES = {
    "one token": (dict(tokens=1, channels=3, state=1, directions=1), None, 0, True, False),
    "vim": (dict(tokens=10, channels=40, state=16, directions=2, shared_input=False), "permuted", 0, True, False),
    "vmamba": (dict(tokens=11, channels=24, state=1, directions=3), "permuted", 0, True, False),
    "odd channels, no D, no bias": (dict(tokens=21, channels=17, state=5, directions=1), None, 0, False, False),
    "empty and repeated": (dict(tokens=13, channels=18, state=3, directions=2), "random", 0, True, False),
    "segments": (dict(tokens=20, channels=8, state=4, directions=2), "permuted", 6, True, False),
    "segments, empty and repeated": (dict(tokens=11, channels=5, state=2, directions=1), "random", 4, False, False),
    "wide state": (dict(tokens=6, channels=9, state=256, directions=1), None, 0, True, False),
    "states": (dict(tokens=19, channels=7, state=6, directions=2), "permuted", 0, False, True),
    "states, empty and repeated": (dict(tokens=9, channels=20, state=3, directions=1), "random", 5, False, True),
}


def make_arguments(case: str, dtype: torch.dtype = torch.float32, device: str = "cpu", batch: int = 2) -> ScanArguments:
    sizes, order, segment, extras, states = CASES[case]
    inputs = make_inputs(batch, **sizes, dtype=dtype, device=device)
    directions, tokens = sizes["directions"], sizes["tokens"]
    table = {
        None: None,
        "permuted": permutations(directions, tokens),
        "random": random_order(directions, tokens, tokens + 4),
    }[order]
    if states:
        inputs["C"] = None
    if not extras:
        inputs["D"] = inputs["delta_bias"] = None
    return ScanArguments(
        **inputs, order=None if table is None else ScanTable.of(table, tokens, device), segment=segment
    )


def check_backend(backend: vssm_kernels.Backend, args: ScanArguments, tolerance: float | None = None) -> None:
    """Outputs and gradients against the reference, with the states that the forward saves and without."""
    require(backend, args)
    gradient = torch.randn(args.output_shape, generator=torch.Generator().manual_seed(3))
    gradient = gradient.to(args.device, args.output_dtype)
    expected, wanted = run_backend(reference.BACKEND, args, gradient)
    for save in (False, True) if backend.saves(args) else (False,):
        output, gradients = run_backend(backend, args, gradient, save=save)
        assert_close(output, expected, "output", tolerance)
        assert_gradients_close(gradients, wanted, tolerance)


def assert_gradients_close(gradients, wanted, tolerance: float | None = None) -> None:
    for name, actual, want in zip(NAMES, gradients, wanted, strict=True):
        assert (actual is None) == (want is None), name
        if want is not None:
            assert actual.dtype == want.dtype, f"gradient of {name} is {actual.dtype}"
            assert_close(actual, want, f"gradient of {name}", tolerance)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", FAST, ids=lambda backend: backend.name)
def test_agrees_with_reference(backend, case, poisoned_memory):
    args = make_arguments(case, device=device_of(backend))
    if backend is native_cpu.BACKEND and args.C is None:
        assert "does not return states" in backend.why_not(args)
    else:
        check_backend(backend, args)


@pytest.mark.parametrize("case", [case for case in CASES if "repeated" not in case and "states" not in case])
def test_triton_in_chunks(case, poisoned_memory, monkeypatch):
    """Short sequences cut as only long ones are."""
    monkeypatch.setattr(triton_fused, "CHUNK_UNIT", 8)
    monkeypatch.setattr(triton_fused, "CARRY_TILE", 64)
    args = make_arguments(case, device=DEVICE, batch=1)
    require(triton_fused.BACKEND, args)
    launch = triton_fused._forward_launch(args.channels, args.state, args.batch * args.directions)
    assert triton_fused._chunks(args, launch).count == math.ceil(args.steps / 8)
    check_backend(triton_fused.BACKEND, args)


@pytest.mark.parametrize("channels", [96, 256])
@pytest.mark.parametrize("state", [1, 2])
def test_triton_with_many_programs(state, channels, poisoned_memory, monkeypatch):
    """Tiles of two widths, or groups of two lengths, as only large batches have."""
    monkeypatch.setattr(triton_fused, "PROGRAMS", 1)
    forward, back = triton_fused._launches(channels, state, 1)
    assert (forward.block_c > back.block_c) if channels == 256 else (forward.unroll > back.unroll)
    inputs = make_inputs(batch=1, tokens=13, channels=channels, state=state, directions=1, device=DEVICE)
    args = ScanArguments(**inputs, order=permuted(1, 13, DEVICE))
    check_backend(triton_fused.BACKEND, args)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", FAST, ids=lambda backend: backend.name)
def test_half_precision_inputs(backend, dtype):
    args = make_arguments("vim", dtype, device=device_of(backend))
    check_backend(backend, args)


@pytest.mark.parametrize("wide", ["u", "delta", "B", "C"])
@pytest.mark.parametrize("backend", FAST, ids=lambda backend: backend.name)
def test_one_input_of_another_precision(backend, wide):
    """As where a model adds a float32 parameter to B under autocast."""
    args = make_arguments("vim", torch.bfloat16, device=device_of(backend), batch=1)
    check_backend(backend, args._replace(**{wide: getattr(args, wide).float()}))


@pytest.mark.parametrize("state", [1, 16])
@pytest.mark.parametrize("offset", [0, 1])
def test_bfloat16_in_pairs_only_where_it_lies_so(offset, state):
    """Rows at odd places of wider ones, as an uneven projection leaves them, are read element by element."""
    inputs = make_inputs(batch=1, tokens=13, channels=32, state=state, directions=2, device=DEVICE)
    for name in ("u", "delta", "B", "C"):
        wider = torch.nn.functional.pad(inputs[name].bfloat16(), (offset, 2 - offset))
        inputs[name] = wider[..., offset : offset + inputs[name].shape[-1]]
    args = ScanArguments(**inputs, order=permuted(2, 13, DEVICE))
    switches = triton_fused._Operands(args).numbers
    assert (switches["ROW_ALIGN"] % 2 == 0) == (offset == 0)
    assert (switches["STATE_ALIGN"] % 2 == 0) == (offset == 0 and state == 16)
    check_backend(triton_fused.BACKEND, args)


@pytest.mark.parametrize(("start", "aligned"), [(0, 8), (1, 1), (2, 2)])
def test_a_storage_that_begins_at_any_place(start, aligned):
    """As another library's memory may: offsets in the storage are zero then, and say nothing."""
    inputs = make_inputs(batch=2, tokens=13, channels=32, state=16, directions=2)
    memory = bytearray(2 * (start + inputs["B"].numel()) + 64)
    even = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % 64  # where 64 divides the address
    B = torch.frombuffer(memory, dtype=torch.bfloat16, offset=even + 2 * start, count=inputs["B"].numel())
    inputs |= {"B": B.view_as(inputs["B"]), "C": inputs["C"].bfloat16()}
    args = ScanArguments(**inputs)
    assert args.B.storage_offset() == 0
    assert triton_fused._Operands(args).numbers["STATE_ALIGN"] == aligned


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_one_state_of_B_beside_that_of_C(offset):
    """Both of one projection, as models hand them, are read as one number where they lie so."""
    inputs = make_inputs(batch=1, tokens=13, channels=32, state=1, directions=2, device=DEVICE)
    inputs |= {name: inputs[name].bfloat16() for name in ("u", "delta", "B", "C")}
    joined = torch.nn.functional.pad(torch.cat([inputs["B"], inputs["C"]], -1).flatten(2), (offset, 2 - offset))
    inputs["B"], inputs["C"] = joined[..., offset : offset + 4].unflatten(2, (2, 2)).split(1, dim=-1)
    args = ScanArguments(**inputs, order=permuted(2, 13, DEVICE))
    assert triton_fused._Operands(args).numbers["BESIDE"] == (offset != 1)
    check_backend(triton_fused.BACKEND, args)


@pytest.mark.parametrize("backend", FAST, ids=lambda backend: backend.name)
def test_an_empty_batch(backend):
    inputs = make_inputs(batch=0, tokens=5, channels=8, state=1, directions=2, device=device_of(backend))
    args = ScanArguments(**inputs, order=permuted(2, 5, device_of(backend)))
    require(backend, args)
    output, gradients = run_backend(backend, args, torch.ones(args.output_shape, device=device_of(backend)))
    assert output.shape == (0, 5, 2, 8) and gradients[0].shape == (0, 5, 8)
    assert torch.equal(gradients[2], torch.zeros_like(args.A))


@pytest.mark.parametrize("tokens", [63, 1000])
@pytest.mark.parametrize("backend", [native_cpu.BACKEND, grouped.BACKEND], ids=lambda backend: backend.name)
def test_long_sequences(backend, tokens):
    inputs = make_inputs(batch=1, tokens=tokens, channels=18, state=2, directions=2)
    check_backend(backend, ScanArguments(**inputs, order=permuted(2, tokens, "cpu")))


@pytest.mark.gpu
@pytest.mark.parametrize("programs", [0, triton_fused.PROGRAMS], ids=["whole", "in chunks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("state", "tokens"), [(1, 1), (1, 1000), (2, 63), (16, 63), (16, 197), (64, 63), (256, 63)])
def test_triton_on_gpu(tokens, state, dtype, programs, poisoned_memory, monkeypatch):
    monkeypatch.setattr(triton_fused, "PROGRAMS", programs)
    inputs = make_inputs(batch=2, tokens=tokens, channels=96, state=state, directions=2, dtype=dtype, device="cuda")
    args = ScanArguments(**inputs, order=permuted(2, tokens, "cuda"))
    check_backend(triton_fused.BACKEND, args)


@pytest.mark.parametrize("case", ["vmamba", "states, empty and repeated"])
@pytest.mark.parametrize("backend", FAST, ids=lambda backend: backend.name)
def test_wide_outputs_of_narrow_inputs(backend, case):
    args = make_arguments(case, torch.bfloat16, device_of(backend))._replace(dtype=torch.float32)
    if args.C is not None or backend is not native_cpu.BACKEND:
        check_backend(backend, args)
        wide = args._replace(u=args.u.float(), dtype=None)
        assert torch.equal(backend.forward(args, False)[0], backend.forward(wide, False)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("programs", [0, triton_fused.PROGRAMS], ids=["whole", "in chunks"])
@pytest.mark.parametrize("state", [1, 16])
def test_wide_outputs_of_narrow_inputs_on_gpu(state, programs, poisoned_memory, monkeypatch):
    monkeypatch.setattr(triton_fused, "PROGRAMS", programs)
    inputs = make_inputs(2, 1000, 1, 128, state, dtype=torch.bfloat16, device="cuda")
    check_backend(triton_fused.BACKEND, ScanArguments(**inputs, dtype=torch.float32))


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_backward_is_deterministic(case):
    args = make_arguments(case, device="cuda")
    gradient = torch.randn(args.output_shape, device="cuda")
    for save in (False, True):
        first, second = (run_backend(triton_fused.BACKEND, args, gradient, save=save)[1] for _ in range(2))
        for name, one, other in zip(NAMES, first, second, strict=True):
            assert one is None or torch.equal(one, other), name


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements():
    batch, tokens, channels = 9, 2**18 + 1, 1024
    assert batch * tokens * channels > 2**31
    inputs = make_inputs(batch=1, tokens=64, channels=channels, state=1, directions=1, device="cuda")
    small = {name: tensor.bfloat16() for name, tensor in inputs.items() if name in ("u", "delta", "B", "C")}
    repeats = -(-tokens // 64)
    tiled = {
        name: tensor.repeat(batch, repeats, *[1] * (tensor.dim() - 2))[:, :tokens] for name, tensor in small.items()
    }
    args = ScanArguments(**{**inputs, **tiled}, order=None, segment=64)
    last_start = (tokens - 1) // 64 * 64
    expected, _ = reference.scan(ScanArguments(**{**inputs, **small}))
    output, _ = triton_fused.BACKEND.forward(args, False)
    assert_close(output[-1:, last_start - 64 : last_start], expected, "last whole segment")
    gradients = triton_fused.BACKEND.backward(args, output)
    wanted = reference.scan_backward(ScanArguments(**{**inputs, **small}), expected)
    assert_close(gradients[0][-1:, last_start - 64 : last_start], wanted[0], "gradient of u there")


@pytest.mark.parametrize("case", CASES)
def test_adjoint_of_the_reference_against_autograd(case):
    """The reference's hand-written backward against autograd through its forward, in float64."""
    args = make_arguments(case, torch.float64)
    leaves = {n: None if t is None else t.requires_grad_() for n, t in zip(NAMES, args.tensors(), strict=True)}
    output, _ = reference.scan(args._replace(**leaves))
    gradient = torch.randn_like(output)
    present = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    expected = dict(zip(present, torch.autograd.grad(output, list(present.values()), gradient), strict=True))
    with torch.no_grad():
        actual = dict(zip(NAMES, reference.scan_backward(args, gradient), strict=True))
    for name, wanted in expected.items():
        assert_close(actual[name], wanted, name)


@pytest.mark.parametrize("backend", [native_cpu.BACKEND, grouped.BACKEND, triton_fused.BACKEND], ids=lambda b: b.name)
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "in chunks"])
def test_extreme_values_agree_with_float64(backend, cut, monkeypatch):
    if cut:
        monkeypatch.setattr(triton_fused, "CHUNK_UNIT", 8)
    inputs = make_inputs(batch=1, tokens=12, channels=16, state=4, directions=1)
    inputs["delta"] = inputs["delta"] + torch.tensor([-60.0, -20, -6, 0, 6, 20, 60, 300]).repeat(2)
    inputs["A"] = inputs["A"] * torch.tensor([1e-6, 1.0, 1e2, 1e6])
    inputs["u"][:, ::3] = 0
    inputs["u"][:, 1::3] *= 1e6
    inputs = {name: tensor.to(device_of(backend)) for name, tensor in inputs.items()}
    args = ScanArguments(**inputs)
    wide = ScanArguments(**{name: tensor.double() for name, tensor in inputs.items()})
    gradient = torch.randn_like(inputs["delta"])
    output, gradients = run_backend(backend, args, gradient)
    expected, wanted = run_backend(reference.BACKEND, wide, gradient.double())
    assert relative_error(output, expected) < 2e-5
    for name, actual, want in zip(NAMES[:7], gradients, wanted, strict=False):
        assert relative_error(actual, want) < 2e-5, name


def test_a_rate_of_zero_keeps_the_state_however_long_the_chunk(monkeypatch):
    """Step sizes that add up to infinity, times zero."""
    monkeypatch.setattr(triton_fused, "CHUNK_UNIT", 8)
    inputs = make_inputs(batch=1, tokens=20, channels=4, state=3, directions=1, device=DEVICE)
    inputs["A"] = torch.zeros_like(inputs["A"])
    inputs["delta"] = torch.full_like(inputs["delta"], 2e38)
    inputs["u"] = inputs["u"] * 1e-38
    args = ScanArguments(**inputs)
    require(triton_fused.BACKEND, args)
    assert_close(triton_fused.BACKEND.forward(args, False)[0], reference.scan(args)[0], "output")


@pytest.mark.parametrize("shared", [(2,), (3,), (2, 3)], ids=["directions", "channels", "both"])
@pytest.mark.parametrize("with_C", [True, False], ids=["outputs", "states"])
def test_triton_reads_gradients_of_any_strides(with_C, shared):
    """A sum after the scan gives all that it added up one gradient, which lies in memory once."""
    inputs = make_inputs(batch=1, tokens=6, channels=6, state=3, device=DEVICE)
    inputs |= {} if with_C else {"C": None, "D": None}
    args = ScanArguments(**inputs)
    require(triton_fused.BACKEND, args)
    shape = [1 if dim in shared else size for dim, size in enumerate(args.output_shape)]
    gradient = torch.randn(shape, device=DEVICE).expand(args.output_shape)
    wanted = reference.scan_backward(args, gradient)
    assert_gradients_close(triton_fused.BACKEND.backward(args, gradient), wanted)


@pytest.mark.parametrize("backend", [reference.BACKEND, *FAST], ids=lambda backend: backend.name)
def test_float16_outputs_saturate(backend):
    """Finite numbers beyond 65504 become that, or -65504; an infinity that comes in goes out."""
    inputs = make_inputs(
        batch=1, tokens=9, channels=20, state=4, directions=2, dtype=torch.float16, device=device_of(backend)
    )
    inputs["u"] = (inputs["u"] * 1e4).clamp(-6e4, 6e4)
    inputs["C"] = inputs["C"] * 1e3
    args = ScanArguments(**inputs)
    require(backend, args)
    exact, _ = reference.scan(args._replace(u=inputs["u"].float()))
    assert (exact.abs() > 65504).any() and (exact.abs() < 65504).any()
    assert_close(backend.forward(args, False)[0], exact.clamp(-65504, 65504).half(), "output")
    inputs["u"][0, 4, 3] = float("inf")
    # D u is infinite at this token; whether C h adds an infinity of the same sign decides between that and NaN.
    assert not torch.isfinite(backend.forward(args, False)[0][0, 4, :, 3]).any()


def test_not_a_number_is_not_hidden():
    for backend in (native_cpu.BACKEND, grouped.BACKEND):
        inputs = make_inputs(batch=1, tokens=6, channels=4, directions=1)
        inputs["delta"][0, 2, 0, 1] = float("nan")
        output, _ = backend.forward(ScanArguments(**inputs), False)
        assert torch.isnan(output[0, 2:, 0, 1]).all(), backend.name
        assert torch.isfinite(output[0, :2]).all() and torch.isfinite(output[0, :, 0, 0]).all(), backend.name


@pytest.mark.parametrize("backend", FAST, ids=lambda backend: backend.name)
def test_empty_steps_do_not_read_what_is_not_a_number(backend):
    """Nor write it: token 0, where the tables of kernels may point at an empty step, is visited before all others."""
    inputs = make_inputs(batch=1, tokens=3, channels=4, directions=2, device=device_of(backend))
    inputs["u"][0, 2] = float("nan")
    order = ScanTable.of(torch.tensor([[0, -1, 1, 2, -1], [1, 0, -1, 2, -1]]), 3, device_of(backend))
    args = ScanArguments(**inputs, order=order)
    require(backend, args)
    output, gradients = run_backend(backend, args, torch.ones(args.output_shape, device=device_of(backend)))
    assert torch.isfinite(output[:, :2]).all() and torch.isnan(output[:, 2]).all()
    assert torch.isfinite(gradients[0][:, 2]).all(), "the gradient of u depends on no u"


def test_float64_is_not_narrowed():
    inputs = make_inputs(dtype=torch.float64)
    args = ScanArguments(**inputs)
    assert selective_scan(**inputs).dtype == torch.float64
    assert native_cpu.BACKEND.why_not(args) == "computes in float32; float64 inputs ask for more"
    pytest.importorskip("triton", reason="Triton is optional")
    on_its_device = ScanArguments(**{name: tensor.to(DEVICE) for name, tensor in inputs.items()})
    assert triton_fused.BACKEND.why_not(on_its_device) == "computes in float32; float64 inputs ask for more"


@pytest.mark.parametrize("forward", [*FAST, reference.BACKEND], ids=lambda backend: backend.name)
@pytest.mark.parametrize("backward", [*FAST, reference.BACKEND], ids=lambda backend: backend.name)
def test_one_backend_forwards_and_another_back(forward, backward):
    """Under compilers each is chosen by itself: what a forward saves for its own backward, others ignore."""
    if DEVICE == "cuda" and native_cpu.BACKEND in (forward, backward):
        pytest.skip("no device has both of them")
    inputs = make_inputs(batch=2, tokens=13, channels=40, state=1, directions=2, device=DEVICE)
    args = ScanArguments(**inputs, order=permuted(2, 13, DEVICE))
    for backend in (forward, backward):
        require(backend, args)
    assert (triton_fused.BACKEND.saves(args) is not None) and native_cpu.BACKEND.saves(args) is None
    output, saved = forward.forward(args, True)
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(3)).to(output)
    assert_gradients_close(
        backward.backward(args.for_backward(saved), gradient), reference.scan_backward(args, gradient)
    )
