"""Non-causal state-space duality: outputs and every gradient against loops over tokens, in all precisions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vssm_kernels import noncausal_ssd
from vssm_kernels.noncausal_ssd import OP, reference
from vssm_kernels.noncausal_ssd.arguments import SSDArguments
from vssm_kernels.testing import TOLERANCE, assert_close

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def make_inputs(
    batch: int = 2, tokens: int = 15, heads: int = 3, channels: int = 4, state: int = 5, dtype=torch.float32, **how
) -> list[Tensor]:
    """A of 1 to 16 and step sizes about 0.05, as in a trained model; what is one number per head is never narrow."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    u, delta, B, C = (normal(batch, tokens, *size) for size in ((heads, channels), (heads,), (state,), (state,)))
    A = 1 + 15 * torch.rand(heads, generator=generator, dtype=torch.float64)
    per_head = (A, normal(heads), normal(heads) - 3)
    u, delta, B, C = (each.to(dtype=dtype, **how) for each in (u, delta, B, C))
    A, D, delta_bias = (each.to(dtype=wide, **how) for each in per_head)
    return [each.requires_grad_() for each in (u, delta, A, B, C, D, delta_bias)]


def loops(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """The paper's sum, token by token and head by head."""
    batch, tokens, heads, _ = u.shape
    images = []
    for b in range(batch):
        rows = [[] for _ in range(tokens)]
        for head in range(heads):
            state = 0
            for s in range(tokens):
                step = torch.log1p(torch.exp(delta[b, s, head] + delta_bias[head]))
                state = state + torch.outer(B[b, s], u[b, s, head] * step * A[head])
            for t in range(tokens):
                rows[t].append(C[b, t] @ state + D[head] * u[b, t, head])
        images.append(torch.stack([torch.stack(row) for row in rows]))
    return torch.stack(images)


def output_and_gradients(function, inputs: list[Tensor]) -> list[Tensor]:
    output = function(*inputs)
    weights = torch.linspace(-1, 1, output.numel(), device=output.device).view(output.shape)
    return [output, *torch.autograd.grad(output, inputs, weights.to(output.dtype))]


@DEVICES
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(2, 15, 3, 4, 5), (1, 1, 1, 1, 1), (1, 20, 2, 3, 32)], ids=str)
def test_output_and_every_gradient_are_those_of_loops_in_float64(shape, dtype, device):
    inputs = make_inputs(*shape, dtype=dtype, device=device)
    exact = [each.detach().double().cpu().requires_grad_() for each in inputs]
    found, expected = output_and_gradients(noncausal_ssd, inputs), output_and_gradients(loops, exact)
    assert found[0].dtype == torch.promote_types(dtype, torch.float32)
    for name, one, want in zip(("output", *NAMES), found, expected, strict=True):
        assert_close(one.cpu(), want, name, tolerance=TOLERANCE[dtype])


@DEVICES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("backward_too", [False, True], ids=["forward", "backward too"])
def test_autocast_narrows_nothing(backward_too, compiled, dtype, device):
    inputs = make_inputs(tokens=300, device=device)
    expected = output_and_gradients(noncausal_ssd, inputs)
    op = torch.compile(noncausal_ssd, fullgraph=True, backend="aot_eager") if compiled else noncausal_ssd
    autocast = torch.autocast(device, dtype)
    found = autocast(output_and_gradients)(op, inputs) if backward_too else output_and_gradients(autocast(op), inputs)
    for name, one, want in zip(("output", *NAMES), found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, want, rtol=0, atol=0, msg=name)


@DEVICES
def test_a_state_beyond_the_range_of_float16_is_read_exactly(device):
    """65536 tokens add 4 each: float16 ends at 65504, and adding 4 changes nothing there from 8192 on."""
    tokens = 65_536
    rows = torch.ones(1, tokens, 1, dtype=torch.float16, device=device)
    u, one = rows[..., None], torch.ones(1, device=device)
    step = torch.full_like(one, math.log(math.expm1(1)))  # softplus of it is 1
    y = noncausal_ssd(u, 0 * rows, 4 * one, rows, rows, 0 * one, step)
    assert_close(y, torch.full_like(y, 4.0 * tokens), tolerance=1e-6)


@pytest.mark.parametrize("steps", [-80.0, -20.0, 30.0], ids=str)
def test_far_step_sizes(steps):
    """Where softplus is nearly zero, and where it is the identity."""
    inputs = make_inputs(dtype=torch.float64)
    inputs[6] = torch.full_like(inputs[6], steps).requires_grad_()
    found, expected = output_and_gradients(noncausal_ssd, inputs), output_and_gradients(loops, inputs)
    for name, one, want in zip(("output", *NAMES), found, expected, strict=True):
        assert_close(one, want, name, tolerance=1e-8)


def test_the_order_of_tokens_does_not_matter():
    inputs, mixed = make_inputs(dtype=torch.float64), torch.randperm(15)
    u, delta, A, B, C, D, bias = inputs
    y = noncausal_ssd(u[:, mixed], delta[:, mixed], A, B[:, mixed], C[:, mixed], D, bias)
    assert_close(y, noncausal_ssd(*inputs)[:, mixed])


def test_second_derivatives_forward_mode_and_vmap():
    inputs = make_inputs(1, 3, 2, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(noncausal_ssd, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(noncausal_ssd, inputs)


def test_compiles_and_has_shapes_on_the_meta_device():
    inputs = make_inputs()
    compiled = torch.compile(noncausal_ssd, fullgraph=True, backend="aot_eager")
    for one, want in zip(
        output_and_gradients(compiled, inputs), output_and_gradients(noncausal_ssd, inputs), strict=True
    ):
        assert_close(one, want)
    assert noncausal_ssd(*make_inputs(device="meta")).shape == (2, 15, 3, 4)
    assert noncausal_ssd(*make_inputs(batch=0)).shape == (0, 15, 3, 4)


def test_operations_are_those_of_two_products():
    """And of four in the backward; that of the state, which it computes once more, is not counted."""
    inputs, product = make_inputs(2, 15, 3, 4, 5), 2 * (2 * 15 * 5 * 3 * 4)
    with FlopCounterMode(display=False) as counter:
        y = noncausal_ssd(*inputs)
        assert counter.get_total_flops() == 2 * product
        y.sum().backward()
        assert counter.get_total_flops() == 6 * product
    with FlopCounterMode(display=False) as counter:
        reference.duality(SSDArguments(*inputs))
    assert counter.get_total_flops() == 2 * product


def test_nothing_that_is_wider_than_the_inputs_is_saved():
    saved = []
    inputs = make_inputs(dtype=torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        noncausal_ssd(*inputs)
    assert {tensor.data_ptr() for tensor in saved} == {tensor.data_ptr() for tensor in inputs}


def test_opcheck():
    torch.library.opcheck(OP.operator, (*make_inputs(), True))


@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_do_not_fit_are_named(name):
    inputs = make_inputs()
    inputs[NAMES.index(name)] = inputs[NAMES.index(name)][..., 0]
    with pytest.raises(ValueError, match=rf"^{name} has shape \(.*\); expected \("):
        noncausal_ssd(*inputs)
