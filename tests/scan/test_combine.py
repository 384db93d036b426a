"""stack, chain, flipped and insert_token: new orders out of others."""

import pytest
import torch

from vssm.scan import ScanOrder, bidirectional, chain, columns, cross, flipped, insert_token, raster, stack
from vssm_kernels import selective_scan


def test_stack_puts_directions_side_by_side():
    order = stack(raster(2, 2), columns(2, 2), cross(2, 2))
    assert order.directions == 6
    assert order.table[:2].tolist() == [[0, 1, 2, 3], [0, 2, 1, 3]]
    assert torch.equal(order.table[2:], cross(2, 2).table)


def test_stack_fills_the_shorter_order_with_empty_steps():
    short = ScanOrder(torch.tensor([[3, 0]]), tokens=4)
    assert stack(raster(2, 2), short).table.tolist() == [[0, 1, 2, 3], [3, 0, -1, -1]]


def test_stack_refuses_orders_over_different_tokens():
    with pytest.raises(ValueError, match=r"must walk the same tokens; these walk \[4, 6\] tokens"):
        stack(raster(2, 2), raster(2, 3))


def test_chain_walks_one_direction_after_another():
    order = chain(raster(2, 2), flipped(columns(2, 2)))
    assert order.table.tolist() == [[0, 1, 2, 3, 3, 1, 2, 0]]
    assert (order.directions, order.tokens) == (1, 4)
    assert (order.visits == 2).all()
    assert torch.equal(chain(cross(3, 4)).table, cross(3, 4).table.view(1, -1))


def test_state_flows_across_the_joins_of_a_chain():
    """Nothing but the first token is read, and it is still felt in the second walk."""
    order = chain(raster(1, 3), raster(1, 3))
    u = torch.zeros(1, 3, 1)
    u[:, 0] = 1
    ones = torch.ones(1, 3, 1, 1)
    y = selective_scan(u, ones, -torch.ones(1, 1, 1), ones, ones, order=order.table)
    alone = selective_scan(u, ones, -torch.ones(1, 1, 1), ones, ones, order=raster(1, 3).table)
    later = alone * torch.exp(-3 * torch.nn.functional.softplus(torch.tensor(1.0)))  # the first walk's, 3 steps older
    torch.testing.assert_close(y, 2 * alone + later)


def test_chain_refuses_orders_over_different_tokens():
    with pytest.raises(ValueError, match=r"orders to chain must walk the same tokens; these walk \[4, 6\] tokens"):
        chain(raster(2, 2), raster(2, 3))


@pytest.mark.parametrize("order", [raster, columns, bidirectional, cross], ids=lambda order: order.__name__)
def test_flipped_twice_is_the_order_itself(order):
    there = order(3, 4)
    back = flipped(there)
    assert torch.equal(back.table, there.table.flip(1))
    assert torch.equal(flipped(back).table, there.table)


@pytest.mark.parametrize(
    ("grid", "token", "step_forwards", "step_backwards"),
    [((14, 14), 98, 98, 98), ((27, 27), 364, 364, 365), ((1, 2), 1, 1, 1), ((3, 3), 4, 4, 5)],
)
def test_class_token_of_vim_sits_in_the_middle(grid, token, step_forwards, step_backwards):
    """The official Vim inserts the class token into the token sequence, and flips that whole sequence."""
    tokens = grid[0] * grid[1]
    order = insert_token(bidirectional(*grid), tokens // 2)
    assert order.tokens == order.steps == tokens + 1
    assert tokens // 2 == token
    assert (order.table == token).nonzero().tolist() == [[0, step_forwards], [1, step_backwards]]
    sequence = torch.arange(tokens + 1, dtype=torch.int32)
    assert torch.equal(order.table, torch.stack([sequence, sequence.flip(0)]))


@pytest.mark.parametrize("position", range(7))
def test_inserted_token_shifts_the_rest_and_keeps_their_order(position):
    before = cross(2, 3)
    after = insert_token(before, position)
    assert (after.visits == 1).all()
    for row, old in zip(after.table, before.table, strict=True):
        others = row[row != position]
        assert torch.equal(torch.where(others > position, others - 1, others), old)


def test_token_before_and_behind_the_sequence():
    assert insert_token(bidirectional(1, 2), 0).table.tolist() == [[0, 1, 2], [2, 1, 0]]
    assert insert_token(bidirectional(1, 2), 2).table.tolist() == [[0, 1, 2], [2, 1, 0]]


def test_direction_that_jumps_meets_the_token_at_its_position():
    # Columns of a 2 x 3 grid never step from token 2 to token 3, so the new token 3 comes at step 3.
    assert insert_token(columns(2, 3), 3).table.tolist() == [[0, 4, 1, 3, 5, 2, 6]]


def test_empty_steps_stay_empty():
    order = ScanOrder(torch.tensor([[0, -1, 1, -1]]), tokens=2)
    table = insert_token(order, 2).table
    assert sorted(table[0].tolist()) == [-1, -1, 0, 1, 2]


@pytest.mark.parametrize("position", [-1, 7])
def test_position_outside_the_sequence_is_refused(position):
    with pytest.raises(ValueError, match=f"position is {position}; expected 0 to 6, the number of tokens"):
        insert_token(raster(2, 3), position)
