"""The gate: plain torch against its formula, the kernels against plain torch."""

import pytest
import torch

from vssm_kernels import sum_gate, use_backend
from vssm_kernels.gpu import why_no_triton
from vssm_kernels.sum_gate import native_cpu, reference, triton_fused
from vssm_kernels.testing import assert_close

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALE = 1 / 3


def make_inputs(batch=2, tokens=5, directions=3, channels=20, dtype=torch.float32, device="cpu"):
    """y and z, z being half of a projection."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(batch, tokens, directions, channels, generator=generator)
    both = torch.randn(batch, tokens, 2 * channels, generator=generator)
    return y.to(device, dtype).requires_grad_(), both.to(device, dtype).requires_grad_()


def needs_compiler():
    if (reason := native_cpu.BACKEND.why_not(None)) is not None:
        pytest.skip(reason)


def half(both):
    return both.chunk(2, dim=-1)[1]


def check_kernels(y, both, of_z=half, backend=triton_fused.BACKEND):
    gradient = torch.randn(y[:, :, 0].shape, generator=torch.Generator().manual_seed(1)).to(y)
    args = reference.GateArguments(y, of_z(both), SCALE)
    actual, expected = (chosen.forward(args) for chosen in (backend, reference.BACKEND))
    assert actual.dtype == y.dtype
    assert_close(actual, expected, "output")
    wanted = torch.autograd.grad(expected, (y, both), gradient)
    for name, one, want in zip("yz", torch.autograd.grad(actual, (y, both), gradient), wanted, strict=True):
        assert one.dtype == want.dtype
        assert_close(one, want, f"gradient of {name}")


def check_sum_alone(backend, directions, scale, device="cpu"):
    y, _ = make_inputs(directions=directions, device=device)
    gradient = torch.randn(y[:, :, 0].shape, generator=torch.Generator().manual_seed(1)).to(y)
    args = reference.GateArguments(y, None, scale)
    actual, expected = (chosen.forward(args) for chosen in (backend, reference.BACKEND))
    assert_close(actual, expected, "output")
    assert_close(expected, scale * sum(y.unbind(2)), "reference")
    one, want = (torch.autograd.grad(out, y, gradient)[0] for out in (actual, expected))
    assert_close(one, want, "gradient")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("directions", [1, 2, 3])
def test_kernels_agree_with_reference(directions, dtype):
    reason = why_no_triton(torch.empty(0, device=DEVICE))
    if reason is not None:
        pytest.skip(reason)
    check_kernels(*make_inputs(directions=directions, dtype=dtype, device=DEVICE))


@pytest.mark.parametrize("scale", [1.0, SCALE])
@pytest.mark.parametrize("directions", [1, 2, 3])
def test_sum_alone(directions, scale):
    reason = why_no_triton(torch.empty(0, device=DEVICE))
    if reason is not None:
        pytest.skip(reason)
    check_sum_alone(triton_fused.BACKEND, directions, scale, DEVICE)


any_strides = pytest.mark.parametrize(
    "of_z",
    [lambda both: both[:, :, ::2], lambda both: half(both)[:1].expand(2, -1, -1), lambda both: half(both.flip(1))],
    ids=["every second channel", "one image for all", "copy"],
)


@any_strides
def test_kernels_take_any_strides(of_z):
    reason = why_no_triton(torch.empty(0, device=DEVICE))
    if reason is not None:
        pytest.skip(reason)
    check_kernels(*make_inputs(device=DEVICE), of_z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("directions, channels", [(1, 7), (2, 16), (3, 20)])
def test_c_agrees_with_reference(directions, channels, dtype):
    needs_compiler()
    check_kernels(*make_inputs(directions=directions, channels=channels, dtype=dtype), backend=native_cpu.BACKEND)


@any_strides
def test_c_takes_any_strides(of_z):
    needs_compiler()
    check_kernels(*make_inputs(), of_z, native_cpu.BACKEND)


@pytest.mark.parametrize("directions, scale", [(1, 1.0), (2, SCALE), (3, 1.0)])
def test_c_sums_alone(directions, scale):
    needs_compiler()
    check_sum_alone(native_cpu.BACKEND, directions, scale)


def test_c_refuses_what_it_cannot_read():
    needs_compiler()
    for inputs, reason in (({"dtype": torch.float64}, "float64"), ({"device": "meta"}, "the inputs are on meta")):
        y, both = make_inputs(**inputs)
        assert reason in native_cpu.BACKEND.why_not(reference.GateArguments(y, half(both), SCALE))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_vim_sizes_on_gpu(dtype):
    y, both = make_inputs(8, 197, 2, 384, dtype, "cuda")
    check_kernels(y, both)
    eager = sum_gate(y, half(both), SCALE)
    assert "SumGate" in type(eager.grad_fn).__name__
    with use_backend("reference"):
        forced = sum_gate(y, half(both), SCALE)
    assert "SumGate" not in type(forced.grad_fn).__name__
    assert_close(eager, forced)
    compiled = torch.compile(sum_gate, fullgraph=True, backend="aot_eager")
    assert_close(compiled(y, half(both), SCALE), forced)


@pytest.mark.gpu
def test_gradient_is_not_copied_per_direction():
    y, both = make_inputs(device="cuda")
    seen = []
    y_of_scan = y * 1
    y_of_scan.register_hook(lambda gradient: seen.append(gradient.stride(2)))
    sum_gate(y_of_scan, half(both)).sum().backward()
    assert seen == [0]


def test_formula():
    y, both = make_inputs(dtype=torch.float64)
    z = half(both)
    expected = SCALE * (y[:, :, 0] + y[:, :, 1] + y[:, :, 2]) * z / (1 + torch.exp(-z))
    assert_close(sum_gate(y, z, SCALE), expected)
    assert torch.equal(sum_gate(y, z), sum_gate(y, z, 1.0))


def test_sums_in_float32():
    """256 + 1 is 256 in bfloat16: three directions of 256, 1 and 1 are not."""
    y = torch.tensor([256.0, 1.0, 1.0], dtype=torch.bfloat16).view(1, 1, 3, 1)
    z = torch.full((1, 1, 1), 50.0)  # silu(z) is z
    assert sum_gate(y, z, 1 / 50).item() == 258


def test_gradcheck_and_compile():
    y, both = make_inputs(tokens=2, channels=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda y, both: sum_gate(y, half(both), SCALE), (y, both))
    compiled = torch.compile(sum_gate, fullgraph=True, backend="aot_eager")
    assert_close(compiled(y, half(both), SCALE), sum_gate(y, half(both), SCALE))
    assert sum_gate(y.to("meta"), half(both).to("meta")).shape == half(both).shape


def test_errors():
    y, both = make_inputs()
    with pytest.raises(ValueError, match=r"y has shape \(2, 5, 3, 20\) and z \(2, 5, 40\); expected"):
        sum_gate(y, both)


@pytest.mark.parametrize("backend", [reference.BACKEND, native_cpu.BACKEND, triton_fused.BACKEND], ids=lambda b: b.name)
def test_float16_sums_saturate(backend):
    device = DEVICE if backend is triton_fused.BACKEND else "cpu"
    y = torch.tensor([6e4, 1e4, -6e4, -2e4, 3.0, 4.0], dtype=torch.float16, device=device).view(1, 3, 2, 1)
    z = torch.full((1, 3, 1), 10.0, dtype=torch.float16, device=device)
    for gate, expected in ((None, [65504, -65504, 7]), (z, [65504, -65504, 70])):
        args = reference.GateArguments(y, gate, 1.0)
        if (reason := backend.why_not(args)) is not None:
            pytest.skip(reason)
        assert_close(backend.forward(args).flatten(), y.new_tensor(expected))
