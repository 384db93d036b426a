"""Every registered scan order, on every kind of grid. A new order needs no test of its own."""

import copy
import pickle

import pytest
import torch

from vssm.scan import (
    atrous,
    bidirectional,
    columns,
    cross,
    diagonal,
    hilbert,
    order_named,
    order_names,
    random,
    raster,
    spiral,
    windows,
    zigzag,
)

# With other numbers than their own default.
NUMBERED = ["atrous(1)", "atrous(3)", "random(3)", "windows(1)", "windows(2)", "windows(3)"]
GRIDS = [(1, 1), (1, 7), (7, 1), (2, 2), (3, 5), (5, 3), (6, 4), (7, 9), (14, 14)]

every_order = pytest.mark.parametrize("name", [*order_names(), *NUMBERED])
every_grid = pytest.mark.parametrize(("height", "width"), GRIDS)


def test_the_known_orders_are_registered():
    assert set(order_names()) >= {"raster", "columns", "bidirectional", "cross"}


@every_order
def test_is_documented(name):
    assert order_named(name).__doc__, f"the order {name} says nothing about how it walks"


@every_order
@every_grid
def test_table_stays_within_the_tokens(name, height, width):
    order = order_named(name)(height, width)
    assert order.tokens == height * width
    assert order.table.dtype == torch.int32 and order.table.is_contiguous()
    assert order.table.shape == (order.directions, order.steps)
    assert order.table.min() >= -1 and order.table.max() < order.tokens


@every_order
@every_grid
def test_all_directions_together_visit_every_token(name, height, width):
    visits = order_named(name)(height, width).visits
    unvisited = (visits.sum(0) == 0).nonzero().flatten().tolist()
    assert not unvisited, f"{name} on {height} x {width} never visits tokens {unvisited}"


@every_order
@every_grid
def test_steps_are_visits_and_empty_steps(name, height, width):
    order = order_named(name)(height, width)
    empty = (order.table < 0).sum(1)
    assert torch.equal(order.visits.sum(1) + empty, torch.full((order.directions,), order.steps))


@every_order
@every_grid
def test_gather_reads_the_tokens_of_the_table(name, height, width):
    order = order_named(name)(height, width)
    numbers = torch.arange(1.0, order.tokens + 1)[:, None] * torch.arange(1.0, order.directions + 1)
    rows = order.gather(numbers[None, :, :, None])
    assert rows.shape == (1, order.directions, order.steps, 1)
    expected = (order.table + 1) * torch.arange(1, order.directions + 1)[:, None]
    assert torch.equal(rows[0, :, :, 0], expected.float())


@every_order
@every_grid
def test_gather_of_shared_values_is_the_same_for_every_direction(name, height, width):
    order = order_named(name)(height, width)
    values = torch.randn(2, order.tokens, 3)
    apart = values.unsqueeze(2).expand(-1, -1, order.directions, -1)
    assert torch.equal(order.gather(values), order.gather(apart))


@every_order
def test_travels_to_other_processes(name):
    order = order_named(name)
    again = pickle.loads(pickle.dumps(order))
    assert again == order and torch.equal(again(3, 5).table, order(3, 5).table)
    assert copy.deepcopy(order) == order


@every_order
def test_has_as_many_directions_on_every_grid(name):
    """Models count them on one grid, and have parameters for each."""
    assert len({order_named(name)(*grid).directions for grid in GRIDS}) == 1


@every_order
@pytest.mark.parametrize(("height", "width"), [(0, 4), (4, 0), (-1, 2)])
def test_an_empty_grid_is_refused(name, height, width):
    stem = name.partition("(")[0]
    with pytest.raises(ValueError, match=f"{stem}.* needs a grid of at least 1 x 1 tokens; got {height} x {width}"):
        order_named(name)(height, width)


# The tables of a 2 x 3 grid, written out by hand:  0 1 2
#                                                   3 4 5
HAND_WRITTEN = {
    raster: [[0, 1, 2, 3, 4, 5]],
    columns: [[0, 3, 1, 4, 2, 5]],
    bidirectional: [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]],
    cross: [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]],
    zigzag: [[0, 1, 2, 5, 4, 3], [3, 4, 5, 2, 1, 0], [0, 3, 4, 1, 2, 5], [5, 2, 1, 4, 3, 0]],
    diagonal: [[0, 1, 3, 2, 4, 5], [2, 1, 5, 0, 4, 3], [5, 4, 2, 3, 1, 0], [3, 4, 0, 5, 1, 2]],
    spiral: [[0, 1, 2, 5, 4, 3], [3, 4, 5, 2, 1, 0]],
    windows(2): [[0, 1, 3, 4, 2, -1, 5, -1], [-1, 5, -1, 2, 4, 3, 1, 0]],
}


@pytest.mark.parametrize("order", HAND_WRITTEN, ids=lambda order: order.__name__)
def test_small_tables(order):
    assert order(2, 3).table.tolist() == HAND_WRITTEN[order]


def test_hilbert_on_a_square_of_four():
    """The curve of the books, second iteration, from the top left to the top right."""
    assert hilbert(4, 4).table[0].tolist() == [0, 1, 5, 4, 8, 12, 13, 9, 10, 14, 15, 11, 7, 6, 2, 3]
    assert torch.equal(hilbert(4, 4).table[2:], hilbert(4, 4).table[:2].flip(1))


@pytest.mark.parametrize(("order", "corners"), [(hilbert, 1), (zigzag, 0), (spiral, 0)])
def test_continuous_orders_step_to_a_neighbour(order, corners):
    for height in range(1, 16):
        for width in range(1, 16):
            table = order(height, width).table.long()
            down, along = (table // width).diff(dim=1).abs(), (table % width).diff(dim=1).abs()
            assert (torch.maximum(down, along) == 1).all(), (height, width)
            assert ((down + along == 2).sum(1) <= corners).all(), (height, width)


def test_hilbert_keeps_near_what_is_near():
    """Tokens of an aligned 4 x 4 block are visited in one go; rows take them in four."""
    table = hilbert(16, 16).table[0].view(16, 16).long()
    blocks = table // 16 // 4 * 4 + table % 16 // 4
    assert (blocks == blocks[:, :1]).all()


def test_windows_that_reach_over_the_edge_end_in_empty_steps():
    order = windows(4)(6, 6)
    assert order.steps == 64 and (order.table < 0).sum(1).tolist() == [28, 28]
    assert order.table[0, 16:32].view(4, 4)[:, 2:].tolist() == [[-1, -1]] * 4
    assert windows(7)(14, 14).table.min() == 0


def test_windows_of_the_default_size_are_those_of_local_mamba():
    assert order_named("windows") == windows(7)


def test_random_is_the_same_on_every_machine():
    assert random(0)(2, 3).table[:2].tolist() == [[3, 5, 2, 4, 1, 0], [1, 2, 5, 3, 0, 4]]
    assert order_named("random") == random(0)
    assert not torch.equal(random(1)(4, 4).table, random(0)(4, 4).table)


@pytest.mark.parametrize("step", [1, 2, 3, 5])
@every_grid
def test_atrous_visits_every_token_once_on_equally_long_sub_grids(step, height, width):
    order = atrous(step)(height, width)
    assert order.directions == step**2
    assert order.steps == -(-height // step) * -(-width // step)
    assert (order.visits.sum(0) == 1).all()
    for direction, tokens in enumerate(order.table):
        tokens = tokens[tokens >= 0]
        assert (tokens // width % step == direction % step).all() and (tokens % width % step == direction // step).all()


def test_atrous_tables():
    """Even rows row by row, odd rows column by column; a missing token is an empty step."""
    assert atrous(1)(2, 3).table.tolist() == raster(2, 3).table.tolist()
    assert atrous(2)(4, 4).table.tolist() == [[0, 2, 8, 10], [4, 12, 6, 14], [1, 3, 9, 11], [5, 13, 7, 15]]
    assert atrous(2)(3, 3).table.tolist() == [[0, 2, 6, 8], [3, -1, 5, -1], [1, -1, 7, -1], [4, -1, -1, -1]]


def test_atrous_of_the_default_step_is_that_of_efficientvmamba():
    assert order_named("atrous") == atrous(2)
