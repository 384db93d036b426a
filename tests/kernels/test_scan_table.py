"""Tables of scan orders: their facts, and that nothing reaches the memory of one that is in use."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest
import torch

from vssm_kernels import ScanTable, causal_conv1d, orders, selective_scan, ssd
from vssm_kernels.orders import checked


def convolved(order: torch.Tensor | ScanTable) -> list[float]:
    """The tokens 1, 2, 3 where the order of one direction visits them."""
    return causal_conv1d(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.ones(1, 1, 1), None, order).flatten().tolist()


@pytest.mark.parametrize(
    ("table", "tokens", "repeats", "covers"),
    [
        ([[0, 1, 2], [2, 1, 0]], 3, False, True),
        ([[0, 1, 2], [2, 1, 0]], 4, False, False),
        ([[0, 0, 1]], 2, True, True),
        ([[0, -1, -1]], 2, False, False),
        ([[-1, 1, -1, 0]], 2, False, True),
        ([[0, 1], [0, 0]], 2, True, False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_facts(table, tokens, repeats, covers, dtype):
    made = ScanTable.of(torch.tensor(table, dtype=dtype), tokens)
    assert (made.repeats, made.covers, made.tokens) == (repeats, covers, tokens)
    assert made.table.dtype == torch.int32 and made.table.tolist() == table


@pytest.mark.parametrize("entry", [-2, 3, 2**40])
def test_entries_out_of_range_are_refused(entry):
    with pytest.raises(ValueError, match=r"order holds entries from .*expected token indices 0 to 2, or -1"):
        ScanTable.of(torch.tensor([[0, 1, entry]]), 3)


@pytest.mark.parametrize(
    ("table", "error", "sentence"),
    [
        ([[0, 1]], TypeError, "order is a list; expected a tensor of integers"),
        (torch.tensor([[0.0, 1.6]]), TypeError, "order is torch.float32; expected a tensor of integers"),
        (torch.tensor([[True, False]]), TypeError, "order is torch.bool; expected"),
        (torch.tensor([0, 1]), ValueError, r"shape \(2,\) for 3 tokens; expected \(directions, steps\)"),
        (torch.zeros(2, 0, dtype=torch.int32), ValueError, r"shape \(2, 0\) for 3 tokens; expected"),
    ],
    ids=["list", "floats", "truth values", "one direction", "no steps"],
)
def test_what_is_no_table_is_named(table, error, sentence):
    with pytest.raises(error, match=sentence):
        ScanTable.of(table, 3)


@pytest.mark.parametrize("order", [[[0, 1, 2]], np.array([[0, 1, 2]]), None], ids=["list", "numpy", "none"])
def test_orders_of_other_types_are_named(order):
    told = rf"order is a {type(order).__name__}; expected a ScanTable, or a tensor of int32"
    with pytest.raises(TypeError, match=told):
        convolved(order)
    if order is not None:
        u, rows = torch.zeros(1, 3, 4), torch.zeros(1, 3, 1, 2)
        with pytest.raises(TypeError, match=told):
            selective_scan(u, u.unsqueeze(2), -torch.ones(1, 4, 2), rows, rows, order=order)
        with pytest.raises(TypeError, match=told):
            ssd(u.unsqueeze(2), rows[..., :1], -torch.ones(1, 1), rows.unsqueeze(3), rows.unsqueeze(3), order=order)


def test_a_change_through_numpy_has_no_effect():
    order = torch.tensor([[0, 1, -1]], dtype=torch.int32)
    made = ScanTable.of(order, 3)
    assert convolved(order) == convolved(made) == [1, 2, 0]
    order.numpy()[:] = 10**6
    assert convolved(order) == convolved(made) == [1, 2, 0]


def test_a_change_in_place_is_checked():
    order = torch.tensor([[0, 1, -1]], dtype=torch.int32)
    assert convolved(order) == [1, 2, 0]
    order[0, 2] = 2
    assert convolved(order) == [1, 2, 3]
    order[0, 0] = 7
    with pytest.raises(ValueError, match="entries from 1 to 7"):
        convolved(order)


def test_a_plain_tensor_is_read_once():
    order = torch.tensor([[2, 0, 1]], dtype=torch.int32)
    assert checked(order, 3) is checked(order, 3)
    assert checked(order, 3) is not checked(order, 4)


def test_inference_tensors_are_read_at_every_use():
    """They have no version, so a change would go unnoticed; and what is made of them serves outside that mode."""
    with torch.inference_mode():
        order = torch.tensor([[0, 1, -1]], dtype=torch.int32)
        assert convolved(order) == [1, 2, 0]
        order[0, 0] = 7
    with pytest.raises(ValueError, match="entries from -1 to 7"):
        convolved(order)
    with torch.inference_mode():
        order[0, 0] = 2
        made = ScanTable.of(order, 3)
    assert not made.table.is_inference() and convolved(made) == [0, 2, 3]


def test_a_table_for_another_number_of_tokens_is_refused():
    with pytest.raises(ValueError, match="order walks 4 tokens, but the input has 3"):
        convolved(ScanTable.of(torch.tensor([[0, 1]]), 4))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_does_not_hold_for_another_number_of_tokens():
    """A traced model keeps the table of the size that it was traced with; beyond it there is no memory to read."""
    order = ScanTable.of(torch.arange(6)[None], 6)
    weight = torch.ones(1, 1, 2)
    traced = torch.jit.trace(lambda x: causal_conv1d(x, weight, None, order), torch.randn(1, 6, 1), check_trace=False)
    assert traced(torch.ones(2, 6, 1)).sum() == 22
    with pytest.raises(Exception, match="order walks 6 tokens, but the input has 3"):
        traced(torch.ones(2, 3, 1))


def test_every_op_is_a_module_too():
    """Its function hides its package under the package's name."""
    import vssm_kernels.selective_scan.reference as reference
    import vssm_kernels.sum_norm.native_cpu
    from vssm_kernels import sum_norm

    assert vssm_kernels.selective_scan.reference is reference
    assert vssm_kernels.sum_norm.native_cpu.BACKEND.name == "native" and vssm_kernels.sum_norm is sum_norm


def test_a_table_in_a_graph_outlives_the_caches(monkeypatch):
    table = ScanTable(Mock(device=torch.device("cuda")), tokens=3, repeats=False, covers=True)
    for capturing in (False, True):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
        assert orders.kept_for_graphs(table) is table
        assert (table in orders._of_graphs) == capturing
    orders._of_graphs.remove(table)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacfwd], ids=["backwards", "forwards"])
@pytest.mark.parametrize("made_inside", [True, False])
def test_orders_first_used_within_a_derivative(transform, made_inside):
    """torch.func wraps what is made inside, and such a table was kept for later calls."""
    outside = torch.tensor([[2, 0, 1]], dtype=torch.int32)

    def loss(x: torch.Tensor) -> torch.Tensor:
        order = torch.tensor([[2, 0, 1]], dtype=torch.int32) if made_inside else outside
        tables.append(ScanTable.of(order, 3))
        return causal_conv1d(x, torch.ones(1, 1, 2), None, order)[0, 0, 0, 0].square()

    tables: list[ScanTable] = []
    x = torch.tensor([[[1.0], [2.0], [3.0]]])
    assert transform(loss)(x).flatten().tolist() == [8.0, 0.0, 8.0]
    assert loss(x).item() == 16.0 and convolved(tables[0]) == [1.0, 2.0, 3.0]


def test_orders_that_vmap_maps_over_are_refused():
    def walk(order: torch.Tensor) -> torch.Tensor:
        return causal_conv1d(torch.ones(1, 3, 1), torch.ones(1, 1, 1), None, order)

    with pytest.raises(ValueError, match="order has no memory of its own, as one of several that vmap maps over"):
        torch.func.vmap(walk)(torch.zeros(2, 1, 3, dtype=torch.int32))
