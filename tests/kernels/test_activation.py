"""An activation with the bias before it: the values and gradients of one kernel are those of torch."""

import pytest
import torch
import torch.nn.functional as F
from on_backends import DEVICE
from torch.autograd import forward_ad

from vssm_kernels import activation, bias_gelu, bias_relu, bias_silu, running_norm
from vssm_kernels.testing import assert_close

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
BOTH = pytest.mark.parametrize(("fused", "plain"), [(bias_silu, F.silu), (bias_gelu, F.gelu)], ids=["silu", "gelu"])


@pytest.fixture
def one_kernel(monkeypatch):
    """Tensors on the CPU go a GPU's way, to kernels that Triton interprets."""
    pytest.importorskip("triton", reason="Triton is optional")
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


def value_and_gradients(function, x, bias, gradient):
    leaves = [tensor.detach().requires_grad_() for tensor in (x, bias)]
    value = function(*leaves)
    return [value, *torch.autograd.grad(value, leaves, gradient.to(value.dtype))]


def check(fused, plain, x, bias, tolerance):
    gradient = normal(*x.shape, dtype=x.dtype)
    found = value_and_gradients(fused, x, bias, gradient)
    assert "_Activated" in type(found[0].grad_fn).__name__
    assert [tensor.dtype for tensor in found] == [x.dtype, x.dtype, bias.dtype]
    expected = value_and_gradients(lambda x, bias: plain(x + bias), x.double(), bias.double(), gradient.double())
    for name, one, other in zip(("value", "gradient of x", "gradient of bias"), found, expected, strict=True):
        assert_close(one, other, name, tolerance)
    with torch.no_grad():
        assert torch.equal(fused(x, bias), found[0])
    again = value_and_gradients(fused, x, bias, gradient)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


@BOTH
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5, 87), (1, 7, 6, 64), (3, 128), (2, 9, 2, 192), (1, 1)], ids=str)
def test_value_and_gradients(one_kernel, fused, plain, shape, dtype, poisoned_memory):
    check(fused, plain, 3 * normal(*shape, dtype=dtype), normal(shape[-1], dtype=dtype), TOLERANCES[dtype])


def check_relu(x, bias, tolerance):
    """In one kernel without gradients; with them torch's, which saves what the next layer saves too."""
    with torch.no_grad():
        found = bias_relu(x, bias)
    assert any(kind[0] is F.relu and run is not None for kind, run in activation._forwards.items())
    assert found.dtype == x.dtype
    assert_close(found, F.relu(x.double() + bias.double()), tolerance=tolerance)
    gradient = normal(*x.shape, dtype=x.dtype)
    recorded = value_and_gradients(bias_relu, x, bias, gradient)
    assert type(recorded[0].grad_fn).__name__ == "ReluBackward0"
    expected = value_and_gradients(lambda x, bias: F.relu(x + bias), x, bias, gradient)
    assert all(map(torch.equal, recorded, expected))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5, 87), (3, 128), (1, 1)], ids=str)
def test_relu(one_kernel, shape, dtype, monkeypatch, poisoned_memory):
    monkeypatch.setattr(activation, "_forwards", {})
    check_relu(normal(*shape, dtype=dtype), normal(shape[-1], dtype=dtype), TOLERANCES[dtype])
    x = torch.tensor([-torch.inf, torch.inf, torch.nan], device=DEVICE, dtype=dtype)[:, None]
    assert torch.equal(bias_relu(x, x.new_zeros(1))[:2], F.relu(x)[:2]) and bias_relu(x, x.new_zeros(1))[2].isnan()


@BOTH
def test_a_bias_in_float32_of_a_map_in_half(one_kernel, fused, plain):
    check(fused, plain, normal(2, 9, 24, dtype=torch.bfloat16), normal(24), 1e-2)


@BOTH
def test_several_tiles_for_each_program(one_kernel, fused, plain, monkeypatch, poisoned_memory):
    monkeypatch.setattr(activation, "_PROGRAMS_MAX", 6)
    monkeypatch.setattr(activation, "_backwards", {})
    check(fused, plain, normal(7, 20, 192), normal(192), 2e-6)


@BOTH
def test_strides(one_kernel, fused, plain):
    x = normal(2, 6, 5, 48)
    for given in (x.movedim(1, -1), x[..., 24:], x[:1].expand(3, 6, 5, 48)):
        assert not given.is_contiguous()
        check(fused, plain, given, normal(given.shape[-1]), 2e-6)


@BOTH
def test_numbers_far_out(one_kernel, fused, plain):
    """Infinities as torch's kernels for GPUs have them; those for CPUs overflow before."""
    x = torch.tensor([0.0, 1e4, -1e4, 88.5, -88.5, 1e30, -1e30, torch.inf, -torch.inf, torch.nan], device=DEVICE)[
        :, None
    ]
    bias = torch.zeros(1, device=DEVICE)
    found = value_and_gradients(fused, x, bias, torch.ones_like(x))
    expected = value_and_gradients(lambda x, bias: plain(x + bias), x.double(), bias.double(), torch.ones_like(x))
    for name, one, other in zip(("value", "gradient"), found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one[:7], other[:7].float(), rtol=1e-6, atol=1e-30, msg=name)
    assert found[0][7:8].isposinf().all() and found[0][8:].isnan().all() and found[1][7:].isnan().all()


@BOTH
def test_second_derivatives(one_kernel, fused, plain):
    x, bias = normal(3, 4, 6).requires_grad_(), normal(6).requires_grad_()

    def penalty(function):
        slopes = torch.autograd.grad(function().pow(3).sum(), (x, bias), create_graph=True)
        return torch.autograd.grad(sum(slope.square().sum() for slope in slopes), (x, bias))

    for one, other in zip(penalty(lambda: fused(x, bias)), penalty(lambda: plain(x + bias)), strict=True):
        assert_close(one, other, tolerance=1e-5)


@BOTH
def test_a_bias_that_x_is_made_of(one_kernel, fused, plain):
    bias = normal(6).requires_grad_()
    found, expected = (
        torch.autograd.grad(function(normal(3, 6) * bias).sum(), bias, create_graph=True)[0]
        for function in (lambda x: fused(x, bias), lambda x: plain(x + bias))
    )
    assert_close(found, expected, tolerance=2e-6)


@BOTH
def test_many_gradients_at_once_and_transforms(one_kernel, fused, plain):
    x, bias = normal(3, 6).requires_grad_(), normal(6).requires_grad_()
    gradients = normal(4, 3, 6)
    found = torch.autograd.grad(fused(x, bias), (x, bias), gradients, is_grads_batched=True)
    expected = torch.autograd.grad(plain(x + bias), (x, bias), gradients, is_grads_batched=True)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)
    inputs = x.detach(), bias.detach()
    assert torch.equal(torch.func.vmap(fused, (0, None))(*inputs), plain(inputs[0] + inputs[1]))
    slope = torch.func.grad(lambda x: fused(x, inputs[1]).sum())(inputs[0])
    assert torch.equal(slope, torch.func.grad(lambda x: plain(x + inputs[1]).sum())(inputs[0]))


@BOTH
@pytest.mark.parametrize("recorded", [True, False])
def test_forward_mode(one_kernel, fused, plain, recorded):
    x, tangent, bias = normal(3, 6), normal(6, 3).T, normal(6).requires_grad_(recorded)
    with forward_ad.dual_level(), torch.set_grad_enabled(recorded):
        found = forward_ad.unpack_dual(fused(forward_ad.make_dual(x, tangent), bias)).tangent
    _, expected = torch.func.jvp(lambda x: plain(x + bias.detach()), (x,), (tangent,))
    assert_close(found.detach(), expected)


@BOTH
def test_float64_and_no_numbers_are_torchs(one_kernel, fused, plain):
    x, bias = normal(2, 3, dtype=torch.float64), normal(3, dtype=torch.float64)
    assert torch.equal(fused(x, bias), plain(x + bias))
    assert fused(normal(0, 3), normal(3)).shape == (0, 3)
    assert torch.equal(fused(x, None), plain(x))


@BOTH
def test_a_bias_of_one_of_two(one_kernel, fused, plain):
    """Frozen weights before the bias, or a frozen bias."""
    for learned in range(2):
        given = [normal(2, 5, 24), normal(24)]
        given[learned].requires_grad_()
        (found,) = torch.autograd.grad(fused(*given).sum(), given[learned])
        (expected,) = torch.autograd.grad(plain(given[0] + given[1]).sum(), given[learned])
        assert_close(found, expected, tolerance=2e-6)


@BOTH
@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_bias_of_another_shape(fused, plain, on_gpu, request):
    if on_gpu:
        request.getfixturevalue("one_kernel")
    with pytest.raises(ValueError, match=r"bias has shape \(1,\); expected \(3,\)"):
        fused(normal(2, 3), normal(1))
    with pytest.raises(TypeError, match=r"bias is torch\.complex64; expected a floating-point tensor"):
        fused(normal(2, 3), normal(3) * 1j)


@pytest.mark.gpu
@BOTH
@pytest.mark.parametrize("shape", [(8, 56, 56, 512), (8, 28, 28, 87), (3, 7, 7, 1392)], ids=str)
def test_model_sizes_on_gpu(fused, plain, shape):
    check(fused, plain, normal(*shape, dtype=torch.bfloat16), normal(shape[-1], dtype=torch.bfloat16), 1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(8, 56, 56, 512), (3, 7, 7, 1392)], ids=str)
def test_relu_on_gpu(shape):
    check_relu(normal(*shape, dtype=torch.bfloat16), normal(shape[-1], dtype=torch.bfloat16), 1e-2)


class Emptied(dict):
    """What `Latest` is to a thread when another one puts in what is too much."""

    def __setitem__(self, key, value):
        self.clear()


def test_another_thread_may_empty_the_plans(one_kernel, monkeypatch):
    for module, name in ((activation, "_forwards"), (activation, "_backwards"), (running_norm, "_plans")):
        monkeypatch.setattr(module, name, Emptied())
    x, bias = normal(3, 8), normal(8)
    value, *_ = activation.gelu_again(x, bias, torch.ones_like(x))
    assert_close(value, F.gelu(x + bias), "value", 1e-5)
    assert_close(bias_gelu(x, bias), F.gelu(x + bias), "value", 1e-5)
    zeros, ones = torch.zeros_like(bias), torch.ones_like(bias)
    assert_close(running_norm.batch_norm(x, zeros, ones, None, None, 0.0), x, "norm", 1e-5)
