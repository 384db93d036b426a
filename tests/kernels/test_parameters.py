"""Parameters as kernels read them: one kernel for several, and plain torch for each, give the same."""

import pytest
import torch
from on_backends import DEVICE

from vssm_kernels import CAST, RATES, Form, Layout, read_parameters
from vssm_kernels.parameters import _Plan
from vssm_kernels.testing import assert_close

FORMS = {
    "weight": ((7, 5), CAST),
    "bias": ((7,), CAST),
    "depthwise": ((6, 1, 3, 3), CAST),
    "stacked": ((2, 9, 6), Form(Layout.STACKED)),
    "stacked, some rows last": ((2, 9, 6), Form(Layout.STACKED, last=3)),
    "side by side": ((3, 4, 6), Form(Layout.SIDE_BY_SIDE)),
    "side by side, some rows last": ((2, 9, 6), Form(Layout.SIDE_BY_SIDE, last=4)),
    "rates": ((3, 5, 4), RATES),
    "rates of an even number of channels": ((2, 6, 1), RATES),
    "larger than one program": ((40, 60), CAST),
}
SHAPES, WAYS = [shape for shape, _ in FORMS.values()], [form for _, form in FORMS.values()]


def made(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in SHAPES]
    return [tensor.requires_grad_() for tensor in drawn]


@pytest.fixture(params=[True, False], ids=["one kernel", "plain"])
def in_one_kernel(request, monkeypatch):
    pytest.importorskip("triton", reason="Triton is optional")
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: request.param), raising=False)


def expected(tensors: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Written out: every direction by itself."""
    results = []
    for tensor, (layout, last) in zip(tensors, WAYS, strict=True):
        if layout == Layout.CAST:
            results.append(tensor.to(dtype))
        elif layout == Layout.RATES:
            results.append(-tensor.float().exp())
        else:
            join = torch.cat if layout == Layout.STACKED else lambda parts: torch.block_diag(*parts)
            results.append(torch.cat([join([w[last:] for w in tensor]), join([w[:last] for w in tensor])]).to(dtype))
    return results


@pytest.mark.parametrize(
    ("held", "dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float16),
    ],
    ids=str,
)
def test_values_and_gradients(in_one_kernel, held, dtype, poisoned_memory):
    tensors = made(held)
    wanted = expected(tensors, dtype)
    gradients = [torch.randn_like(tensor) for tensor in wanted]
    results = read_parameters(tensors, WAYS, dtype)
    for name, result, want in zip(FORMS, results, wanted, strict=True):
        assert (result.shape, result.dtype) == (want.shape, want.dtype), name
        assert_close(result, want, name)
    found = torch.autograd.grad(results, tensors, gradients, retain_graph=True)
    for name, gradient, want in zip(FORMS, found, torch.autograd.grad(wanted, tensors, gradients), strict=True):
        assert gradient.dtype == held
        assert_close(gradient, want, f"gradient of {name}", 1e-2 if held == torch.bfloat16 else None)


def test_second_derivatives_and_many_gradients_at_once(in_one_kernel):
    (tensor,) = (made()[list(FORMS).index("rates")],)
    (rates,) = read_parameters([tensor], [RATES], torch.float32)
    (first,) = torch.autograd.grad(rates.square().sum(), tensor, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), tensor)
    assert_close(second, 4 * (2 * tensor).exp(), "second derivative")
    (rates,) = read_parameters([tensor], [RATES], torch.float32)
    many = torch.eye(rates.numel(), device=DEVICE).view(-1, *rates.shape)
    (jacobian,) = torch.autograd.grad(rates, tensor, many, is_grads_batched=True)
    assert_close(jacobian.flatten(1), torch.diag(-tensor.detach().exp().flatten()), "jacobian")


def test_changes_of_any_kind_are_seen(in_one_kernel):
    """Nothing is remembered: not even memory that is written without autograd's knowledge can be stale."""
    tensor = torch.ones(3, 2, device=DEVICE).requires_grad_()
    changes = (
        lambda: tensor.data.add_(1),
        lambda: tensor.detach().add_(1),
        lambda: setattr(tensor, "data", tensor.data + 1),
    )
    for change in changes:
        before = read_parameters([tensor], [CAST], torch.bfloat16)[0].clone()
        change()
        assert torch.equal(read_parameters([tensor], [CAST], torch.bfloat16)[0], before + 1)


def test_frozen_parameters_are_constants(in_one_kernel):
    frozen, learned = torch.ones(3, 2, device=DEVICE), torch.ones(3, 2, device=DEVICE).requires_grad_()
    results = read_parameters([frozen, learned], [CAST, CAST], torch.bfloat16)
    assert [result.requires_grad for result in results] == [False, True]
    with torch.no_grad():
        assert not read_parameters([learned], [CAST], torch.bfloat16)[0].requires_grad


def test_what_is_read_as_it_is_is_not_copied(in_one_kernel):
    tensor = torch.ones(3, 2, device=DEVICE)
    assert read_parameters([tensor], [CAST], torch.float32)[0] is tensor


def test_what_cuda_graphs_read_of_plans_is_kept():
    """A graph that was captured reads the table of its plan, however many other kinds of parameters came since."""
    cpu = torch.device("cpu")
    first, *_ = [_Plan.of((torch.Size([n]),), (CAST,), torch.float32, cpu) for n in range(1, 1100)]
    assert _Plan.of((torch.Size([1]),), (CAST,), torch.float32, cpu) is first
