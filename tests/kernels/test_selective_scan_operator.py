"""The scan's public function, as an operator of torch: its gradients, under compilers, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from vssm_kernels import ScanTable, selective_scan
from vssm_kernels.selective_scan import OP
from vssm_kernels.selective_scan.arguments import ScanArguments
from vssm_kernels.testing import assert_close, make_inputs


def op_arguments(dtype=torch.float64, device="cpu"):
    inputs = make_inputs(batch=2, tokens=5, channels=3, state=2, directions=2, dtype=dtype, device=device)
    tensors = [tensor.requires_grad_() for tensor in inputs.values()]
    order = torch.tensor([[0, 1, 2, 3, 4, -1], [4, 3, -1, 2, 2, 0]], dtype=torch.int32, device=device)
    return tensors, order


@pytest.mark.parametrize("merge", [False, True])
def test_gradcheck(merge):
    tensors, order = op_arguments()

    def op(u, delta, A, B, C, D, bias):
        return selective_scan(u, delta, A, B, C, D, delta_bias=bias, order=order, segment=4, merge=merge)

    assert torch.autograd.gradcheck(op, tensors)


@pytest.mark.parametrize("checked", [True, False])
def test_opcheck(checked):
    tensors, order = op_arguments(torch.float32)
    table = ScanTable.of(order, 5) if checked else ScanTable(order, None, None, None)
    u, delta, A, B, C, D, bias = tensors
    weight = torch.randn(2, 3, 4, requires_grad=True)
    low_rank = torch.randn(2, 5, 2, 4, requires_grad=True)
    for args, save in (
        (ScanArguments(u, delta, A, B, C, D, bias, order=table), True),
        (ScanArguments(u, delta, A, B, None, None, None, order=table, segment=3, dtype=torch.float64), True),
        (ScanArguments(u, low_rank, A, B, C, D, bias, weight, order=table), False),
    ):
        torch.library.opcheck(OP.operator, (*OP.flatten(args), save))


@pytest.mark.parametrize("plain", [True, False])
def test_compiles_without_graph_breaks(plain):
    """With a table whose facts are known, and with a plain tensor, whose facts are read when it runs."""
    tensors, order = op_arguments(torch.float32)
    order = order if plain else ScanTable.of(order, 5)

    def op(u, delta, A, B, C, D, bias):
        return selective_scan(u, delta, A, B, C, D, delta_bias=bias, order=order, merge=True)

    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(op(*tensors).square().sum(), tensors)
    actual = torch.autograd.grad(compiled(*tensors).square().sum(), tensors)
    for name, one, other in zip(make_inputs(), actual, expected, strict=True):
        assert_close(one, other, name)


def test_meta_device():
    inputs = {name: tensor.to("meta") for name, tensor in make_inputs(dtype=torch.bfloat16).items()}
    u, delta, A, B, C, D, bias = (tensor.requires_grad_() for tensor in inputs.values())
    y = selective_scan(u, delta, A, B, C, D, delta_bias=bias, merge=True)
    assert y.shape == u.shape and y.dtype == torch.bfloat16 and y.is_meta
    y.sum().backward()
    assert u.grad.shape == u.shape and A.grad.dtype == torch.float32


def test_merge_is_the_sum_over_directions():
    inputs = make_inputs()
    assert_close(selective_scan(**inputs, merge=True), selective_scan(**inputs).sum(2))
    states = {**inputs, "C": None, "D": None}
    assert_close(selective_scan(**states, merge=True), selective_scan(**states).sum(2))


def test_strided_inputs():
    """B, C and delta are usually slices of one projection."""
    inputs = make_inputs(channels=6, state=4)
    joined = torch.cat([inputs["delta"], inputs["B"], inputs["C"]], dim=-1)
    slices = joined.split([6, 4, 4], dim=-1)
    u, delta, A, B, C, D, bias = inputs.values()
    expected = selective_scan(u, delta, A, B, C, D, delta_bias=bias)
    assert torch.equal(selective_scan(u, slices[0], A, slices[1], slices[2], D, delta_bias=bias), expected)
    transposed = B.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(selective_scan(u, delta, A, transposed, C, D, delta_bias=bias), expected)


class TestErrors:
    def call(self, **changes):
        inputs = {**make_inputs(tokens=5, channels=3, state=2), **changes}
        positional = [inputs.pop(name) for name in ("u", "delta", "A", "B", "C")]
        return selective_scan(*positional, **inputs)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (dict(delta=torch.randn(2, 5, 3)), r"delta has shape .* expected \(batch, tokens, directions, channels\)"),
            (dict(A=torch.randn(4, 3, 2)), "A has shape .* 2 directions of 3 channels"),
            (dict(B=torch.randn(2, 5, 2, 3)), r"B has shape .* expected .* \(2, 5, 2, 2\)"),
            (dict(u=torch.randn(2, 5, 4)), "u has shape .* shared by the directions"),
            (dict(D=torch.randn(6)), "D has shape"),
            (dict(C=None), "D needs C"),
            (dict(segment=0), "segment is 0"),
            (dict(segment=-2), "segment is -2"),
            (dict(order=torch.zeros(3, 5, dtype=torch.int32)), r"order has shape .* \(2, steps\)"),
            (
                dict(order=torch.full((2, 5), 5, dtype=torch.int32)),
                "entries from 5 to 5; expected token .* 0 to 4",
            ),
            (dict(order=torch.full((2, 5), -2, dtype=torch.int32)), "entries from -2"),
        ],
    )
    def test_message(self, changes, message):
        with pytest.raises(ValueError, match=message):
            self.call(**changes)

    def test_types(self):
        with pytest.raises(TypeError, match=r"order is torch.int64; expected torch.int32"):
            self.call(order=torch.zeros(2, 5, dtype=torch.int64))

    def test_state_too_wide(self):
        with pytest.raises(ValueError, match="state 1 to 256"):
            self.call(A=-torch.ones(2, 3, 257), B=torch.ones(2, 5, 2, 257), C=torch.ones(2, 5, 2, 257))
