"""What a backward computes again: the values and the gradients of one kernel are those of torch."""

import pytest
import torch
import torch.nn.functional as F
from on_backends import DEVICE

from vssm_kernels import gelu_again, sum_gate, sum_gate_again, use_backend
from vssm_kernels.testing import assert_close

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float64: 1e-12}


def normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(DEVICE, dtype)


@pytest.fixture(params=[True, False], ids=["one kernel", "torch"])
def in_one_kernel(request, monkeypatch):
    pytest.importorskip("triton", reason="Triton is optional")
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: request.param), raising=False)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_gelu(in_one_kernel, with_bias, dtype, poisoned_memory):
    x, gradient = 3 * normal(3, 5, 137, dtype=dtype), normal(3, 5, 137, dtype=dtype)
    bias = normal(137, dtype=dtype) if with_bias else None
    for given, slope in ((x, gradient), (x.transpose(0, 1), gradient.transpose(0, 1)), (x[:, 1:], gradient[:, 1:])):
        leaves = [tensor.detach().double().requires_grad_() for tensor in (given, bias) if tensor is not None]
        expected = F.gelu(sum(leaves))
        wanted = torch.autograd.grad(expected, leaves, slope.double())
        found = gelu_again(given, bias, slope)
        if not with_bias:
            assert found[2] is None
            found = found[:2]
        for name, one, other in zip(("value", "dx", "dbias"), found, (expected.detach(), *wanted), strict=False):
            assert one.dtype == dtype
            assert_close(one, other, name, TOLERANCES[dtype])


def test_gelu_far_out():
    x = torch.tensor([-1e4, -40.0, 40.0, 1e4], device=DEVICE)
    value, dx, _ = gelu_again(x, None, torch.ones_like(x))
    assert value.tolist() == [0.0, 0.0, 40.0, 1e4] and dx.tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("backend", ["native", "triton", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gate(backend, dtype, poisoned_memory):
    if backend == "triton":
        pytest.importorskip("triton", reason="Triton is optional")
    total, gradient = normal(2, 9, 24, dtype=dtype), normal(2, 9, 24, dtype=dtype)
    z = normal(2, 9, 48, dtype=dtype)[..., 24:]
    if backend == "native":
        total, gradient, z = total.cpu(), gradient.cpu(), z.cpu()
    with use_backend(backend):
        leaves = [total.detach().requires_grad_(), z.detach().requires_grad_()]
        expected = sum_gate(leaves[0].unsqueeze(2), leaves[1], 0.5)
        wanted = torch.autograd.grad(expected, leaves, gradient)
        found = sum_gate_again(total, z, 0.5, gradient)
    for name, one, other in zip(("value", "total", "z"), found, (expected.detach(), *wanted), strict=True):
        assert_close(one, other, name)
