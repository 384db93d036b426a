"""The gate: plain torch against its formula, the kernels against plain torch."""

import pytest
import torch
from on_backends import device_of, require

from vssm_kernels import sum_gate, use_backend
from vssm_kernels.sum_gate import native_cpu, reference, triton_fused
from vssm_kernels.sum_gate.arguments import GateArguments
from vssm_kernels.testing import assert_close

SCALE = 1 / 3
FAST = pytest.mark.parametrize("backend", [native_cpu.BACKEND, triton_fused.BACKEND], ids=lambda backend: backend.name)


def make_inputs(batch=2, tokens=5, directions=3, channels=20, dtype=torch.float32, device="cpu"):
    """y and z, z being half of a projection."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(batch, tokens, directions, channels, generator=generator)
    both = torch.randn(batch, tokens, 2 * channels, generator=generator)
    return y.to(device, dtype).requires_grad_(), both.to(device, dtype).requires_grad_()


def half(both):
    return both.chunk(2, dim=-1)[1]


def check(backend, y, both, of_z=half, scale=SCALE):
    """Output and gradients, by autograd, against the reference's."""
    z = None if of_z is None else of_z(both)
    require(backend, GateArguments(y, z, scale))
    leaves = (y,) if z is None else (y, both)
    gradient = torch.randn(y[:, :, 0].shape, generator=torch.Generator().manual_seed(1)).to(y)
    found = []
    for name in (backend.name, "reference"):
        with use_backend(name):
            output = sum_gate(y, z, scale)
        found.append((output, *torch.autograd.grad(output, leaves, gradient, retain_graph=True)))
    for name, one, want in zip(("output", "gradient of y", "gradient of z"), *found, strict=False):
        assert one.dtype == want.dtype
        assert_close(one, want, name)


@FAST
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("directions, channels", [(1, 7), (2, 16), (3, 20)])
def test_agrees_with_reference(backend, directions, channels, dtype):
    check(backend, *make_inputs(directions=directions, channels=channels, dtype=dtype, device=device_of(backend)))


@FAST
@pytest.mark.parametrize("scale", [1.0, SCALE])
@pytest.mark.parametrize("directions", [1, 2, 3])
def test_sum_alone(backend, directions, scale):
    check(backend, *make_inputs(directions=directions, device=device_of(backend)), of_z=None, scale=scale)


@FAST
@pytest.mark.parametrize(
    "of_z",
    [lambda both: both[:, :, ::2], lambda both: half(both)[:1].expand(2, -1, -1), lambda both: half(both.flip(1))],
    ids=["every second channel", "one image for all", "copy"],
)
def test_any_strides(backend, of_z):
    check(backend, *make_inputs(device=device_of(backend)), of_z)


@FAST
def test_one_token_in_contiguous_memory_with_another_stride(backend):
    y, both = make_inputs(tokens=1, device=device_of(backend))
    check(backend, y, both, lambda both: half(both).contiguous().as_strided((2, 1, 20), (20, 1, 1)))


@FAST
def test_an_empty_batch(backend):
    check(backend, *make_inputs(batch=0, device=device_of(backend)))


def test_c_refuses_what_it_cannot_read():
    for inputs, reason in (({"dtype": torch.float64}, "float64"), ({"device": "meta"}, "the inputs are on meta")):
        y, both = make_inputs(**inputs)
        assert reason in native_cpu.BACKEND.why_not(GateArguments(y, half(both), SCALE))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_vim_sizes_on_gpu(dtype):
    y, both = make_inputs(8, 197, 2, 384, dtype, "cuda")
    check(triton_fused.BACKEND, y, both)
    compiled = torch.compile(sum_gate, fullgraph=True, backend="aot_eager")
    assert_close(compiled(y, half(both), SCALE), sum_gate(y, half(both), SCALE))


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
    y = torch.tensor([6e4, 1e4, -6e4, -2e4, 3.0, 4.0], dtype=torch.float16, device=device_of(backend)).view(1, 3, 2, 1)
    z = torch.full((1, 3, 1), 10.0, dtype=torch.float16, device=y.device)
    for gate, expected in ((None, [65504, -65504, 7]), (z, [65504, -65504, 70])):
        args = GateArguments(y, gate, 1.0)
        require(backend, args)
        assert_close(backend.forward(args, False)[0].flatten(), y.new_tensor(expected))
