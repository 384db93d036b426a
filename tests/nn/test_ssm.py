"""The shared state-space core: inputs of both kinds, dtypes, and the order table as a constant."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from vssm.nn import OrderTable, SelectiveScan
from vssm.scan import ScanOrder, bidirectional, cross, raster


def scan_and_tokens(order=cross, tokens: int = 12) -> tuple[SelectiveScan, torch.Tensor]:
    torch.manual_seed(0)
    return SelectiveScan(8, order(3, 4).directions, state=4, rank=2), torch.randn(2, tokens, 8)


def test_the_recurrence_written_out() -> None:
    """One direction after the other, step by step, from the module's parameters alone."""
    scan, tokens = scan_and_tokens()
    z = torch.randn_like(tokens)
    expected = torch.zeros_like(tokens)
    for k in range(4):
        state = torch.zeros(2, 8, 4)
        for token in cross(3, 4).table[k].tolist():
            u = tokens[:, token]
            step, B, C = (u @ scan.x_proj[k].T).split([2, 4, 4], dim=-1)
            delta = F.softplus(step @ scan.dt_proj[k].T + scan.dt_bias[k])
            decay = torch.exp(-delta[..., None] * scan.A_log[k].exp())
            state = decay * state + (delta * u)[..., None] * B[:, None]
            expected[:, token] += (state * C[:, None]).sum(-1) + scan.D[k] * u
    order = cross(3, 4).table
    torch.testing.assert_close(scan(tokens, order, merge=True), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scan(tokens, order).sum(2), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scan(tokens, order, z), expected * F.silu(z), atol=1e-5, rtol=1e-5)


def test_shared_input_is_the_same_input_for_every_direction() -> None:
    scan, tokens = scan_and_tokens()
    apart = tokens.unsqueeze(2).expand(-1, -1, 4, -1)
    order = cross(3, 4).table
    torch.testing.assert_close(scan(tokens, order), scan(apart, order), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_recurrence_is_float32_in_half_precision_models(dtype: torch.dtype) -> None:
    """With weights exact in half precision, a long slow sum loses no more than rounding of inputs and output does."""
    torch.manual_seed(0)
    scan = SelectiveScan(8, 2, state=1, rank=1).to(dtype)
    tokens = torch.rand(1, 2000, 8, dtype=dtype)
    order = bidirectional(40, 50).table
    with torch.no_grad():
        found = scan(tokens, order)
        expected = scan.float()(tokens.float(), order)
    assert found.dtype == dtype
    assert (found.float() - expected).norm() <= 0.02 * expected.norm()


def test_initial_step_sizes_span_two_decades() -> None:
    scan = SelectiveScan(512, 4, state=16, rank=8)
    step = F.softplus(scan.dt_bias)
    assert 0.999e-3 < step.min() < 1.1e-3 and 0.09 < step.max() < 0.1001
    torch.testing.assert_close(scan.A_log.exp()[2, 7], torch.arange(1.0, 17.0))


def test_order_table_survives_copies_and_modes() -> None:
    table = OrderTable(bidirectional)
    with torch.inference_mode(), torch.device("meta"):
        made = table(5, 9, torch.device("cpu"))
    assert not made.table.is_inference() and made.table.device.type == "cpu"
    assert pickle.loads(pickle.dumps(table))(5, 9, torch.device("cpu")) is made


def test_states_read_by_C_are_the_outputs() -> None:
    scan, tokens = scan_and_tokens()
    order = OrderTable(cross)(3, 4, tokens.device)
    states, C = scan.states(tokens, order, segment=5)
    assert states.shape == (2, 12, 4, 8, 4) and C.shape == (2, 12, 4, 4)
    read = (states * C[..., None, :]).sum(-1) + scan.D * tokens.unsqueeze(2)
    torch.testing.assert_close(scan(tokens, order, segment=5), read, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(scan(tokens, order), read, atol=1e-3), "segments make a difference"


def test_layers_of_one_order_share_their_table() -> None:
    place = 3, 7, torch.device("cpu")
    assert OrderTable(cross)(*place) is OrderTable(cross)(*place)


def test_no_order_is_raster_order():
    scan = SelectiveScan(channels=8, directions=1, state=2, rank=1)
    tokens = torch.randn(2, 6, 8)
    torch.testing.assert_close(scan(tokens, None), scan(tokens, raster(2, 3).table))


def test_the_order_of_a_table_is_fixed() -> None:
    """Compiled models hold the tables of the order that the table was made with."""
    with pytest.raises(AttributeError, match="'order'"):
        OrderTable(cross).order = bidirectional


def test_an_order_without_a_hash_is_refused() -> None:
    @dataclass
    class Rows:
        first: int

        def __call__(self, height: int, width: int) -> ScanOrder:
            return raster(height, width)

    with pytest.raises(TypeError, match="a Rows has no hash; expected a function"):
        OrderTable(Rows(0))


def test_tables_of_a_hundred_sizes_are_kept():
    """As detectors meet them: each of the stages has grids of its own."""
    table, cpu = OrderTable(raster), torch.device("cpu")
    grids = [(height, width) for height in range(1, 21) for width in range(1, 21)]
    first = [table(*grid, cpu) for grid in grids]
    assert all(table(*grid, cpu) is made for grid, made in zip(grids, first, strict=True))
