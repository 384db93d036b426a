"""Step sizes that the scan makes of low-rank ones itself."""

import pytest
import torch

from vssm_kernels import selective_scan, side_by_side
from vssm_kernels.testing import assert_close, make_inputs


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_low_rank_steps(device):
    """The step size as a product, made inside or outside: the same outputs and gradients."""
    inputs = make_inputs(tokens=5, channels=3, state=2, dtype=torch.float64, device=device)
    u, _, A, B, C, D, bias = (tensor.requires_grad_() for tensor in inputs.values())
    order = torch.tensor([[0, 1, 2, 3, 4, -1], [4, 3, -1, 2, 1, 0]], dtype=torch.int32, device=device)
    step = torch.randn(2, 5, 2, 4, dtype=torch.float64, device=device, requires_grad=True)
    weight = torch.randn(2, 3, 4, dtype=torch.float64, device=device, requires_grad=True)
    outside = selective_scan(u, torch.einsum("btkr,kcr->btkc", step, weight), A, B, C, D, delta_bias=bias, order=order)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.shape) or tensor, lambda saved: saved
    ):
        inside = selective_scan(u, step, A, B, C, D, delta_bias=bias, delta_weight=weight, order=order)
    assert step.shape in saved and (2, 5, 2, 3) not in saved  # the product
    assert_close(inside, outside)
    leaves = (u, step, A, B, C, D, bias, weight)
    gradient = torch.randn_like(outside)
    expected = torch.autograd.grad(outside, leaves, gradient)
    for one, want in zip(torch.autograd.grad(inside, leaves, gradient), expected, strict=True):
        assert_close(one, want)


def test_low_rank_steps_that_do_not_fit():
    inputs = make_inputs(channels=6, directions=2)
    u, _, A, B, C, D, _ = inputs.values()
    with pytest.raises(ValueError, match=r"delta has shape \(2, 63, 2, 3\) and delta_weight \(2, 6, 4\); expected"):
        selective_scan(u, torch.randn(2, 63, 2, 3), A, B, C, D, delta_weight=torch.randn(2, 6, 4))


@pytest.mark.parametrize("batch", [0, 1])
def test_step_weights_side_by_side(batch):
    """As a GPU takes them, on any device, an empty batch too."""
    inputs = make_inputs(batch=batch, tokens=5, channels=3, directions=2, state=2)
    u, _, A, B, C, D, _ = inputs.values()
    step, weight = torch.randn(batch, 5, 2, 4, requires_grad=True), torch.randn(2, 3, 4, requires_grad=True)
    apart = selective_scan(u, step, A, B, C, D, delta_weight=weight)
    joined = selective_scan(u, step, A, B, C, D, delta_weight=side_by_side(weight))
    assert_close(joined, apart)
    expected = torch.autograd.grad(apart.sum(), (step, weight))
    for one, want in zip(torch.autograd.grad(joined.sum(), (step, weight)), expected, strict=True):
        assert_close(one, want)


def test_step_weights_of_no_directions_are_refused():
    u, _, *others = make_inputs(tokens=5, directions=0, channels=3).values()
    with pytest.raises(ValueError, match=r"delta_weight \(0, 3, 2\)"):
        selective_scan(u, torch.randn(2, 5, 0, 2), *others[:4], delta_weight=torch.randn(0, 3, 2))
