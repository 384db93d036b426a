"""Batch norm by running statistics with its activation: the numbers of one kernel are those of torch."""

import pytest
import torch
import torch.nn.functional as F
from on_backends import DEVICE

from vssm_kernels import batch_norm
from vssm_kernels.testing import assert_close

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
KINDS = {"none": None, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}
ACTIVATIONS = pytest.mark.parametrize("activation", KINDS.values(), ids=KINDS)


@pytest.fixture
def one_kernel(monkeypatch):
    """Tensors on the CPU go a GPU's way, to a kernel that Triton interprets, and torch's norm is out of reach."""
    pytest.importorskip("triton", reason="Triton is optional")
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)
    monkeypatch.setattr(F, "batch_norm", None)


def make_inputs(*shape: int, dtype=torch.float32, affine=True, device=DEVICE) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(sum(shape))
    x, mean, weight, bias = (torch.randn(size, generator=generator) for size in (shape, *[shape[-1:]] * 3))
    variance = torch.rand(shape[-1], generator=generator)
    given = x.to(dtype), mean, variance, weight if affine else None, bias if affine else None
    return [None if tensor is None else tensor.to(device) for tensor in given]


def formula(x, mean, variance, weight, bias, eps, activation):
    y = (x.double() - mean) / (variance + eps).sqrt()
    y = y if weight is None else y * weight + bias
    return y if activation is None else activation(y)


@ACTIVATIONS
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5, 87), (1, 7, 6, 64), (3, 192), (1, 1)], ids=str)
def test_formula(one_kernel, activation, affine, dtype, shape, poisoned_memory):
    inputs = make_inputs(*shape, dtype=dtype, affine=affine)
    found = batch_norm(*inputs, 1e-3, activation)
    assert found.dtype == dtype
    assert_close(found, formula(*inputs, 1e-3, activation), tolerance=TOLERANCES[dtype])


@ACTIVATIONS
@pytest.mark.parametrize("why", ["on a CPU", "gradients", "strides", "another activation", "nothing"])
def test_torchs_operations_take_the_rest(activation, why):
    inputs = make_inputs(0 if why == "nothing" else 2, 3, 5, 4, device="cpu")
    if why == "strides":
        inputs[0] = inputs[0].transpose(1, 2)
    inputs[0].requires_grad_(why == "gradients")
    activation = torch.tanh if why == "another activation" else activation
    found = batch_norm(*inputs, 1e-3, activation)
    assert_close(found, formula(*inputs, 1e-3, activation).float(), tolerance=2e-6)
    if why == "gradients":
        found.sum().backward()


def test_no_number_stays_none_and_infinities_stay_infinite(one_kernel):
    x = torch.tensor([[torch.nan], [torch.inf], [-torch.inf]], device=DEVICE)
    found = batch_norm(x, *make_inputs(1, 1, affine=False)[1:], 1e-3, F.relu)
    assert found[0].isnan() and found[1].isposinf() and found[2] == 0


@pytest.mark.gpu
@ACTIVATIONS
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", [(8, 112, 112, 32), (8, 56, 56, 256), (3, 7, 7, 1392)], ids=str)
def test_model_sizes_on_gpu(activation, dtype, shape, monkeypatch):
    inputs = make_inputs(*shape, dtype=dtype, device="cuda")
    expected = formula(*inputs, 1e-5, activation)
    monkeypatch.setattr(F, "batch_norm", None)  # one kernel, then
    assert_close(batch_norm(*inputs, 1e-5, activation), expected, tolerance=TOLERANCES[dtype])
