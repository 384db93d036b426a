"""ScanOrder and its registry: what they compute, and what they refuse."""

import numpy as np
import pytest
import torch

from vssm.scan import ScanOrder, order_named, order_names, scan_order, scan_order_with
from vssm.scan import order as order_module


@pytest.fixture
def scratch_registry(monkeypatch):
    """Orders registered inside a test vanish with it."""
    monkeypatch.setattr(order_module, "_registry", dict(order_module._registry))


def test_empty_steps_read_zeros():
    order = ScanOrder(torch.tensor([[1, -1, 0]]), tokens=3)
    values = torch.tensor([[[1.0], [2.0], [3.0]]])
    assert order.gather(values).flatten().tolist() == [2, 0, 1]
    assert order.visits.tolist() == [[1, 1, 0]]


@pytest.mark.parametrize(
    ("table", "tokens", "sentence"),
    [
        ([[0, 1]], 2, "a scan order's table is a tensor; got a list: make it with torch.as_tensor"),
        (np.array([[0, 1]]), 2, "got a ndarray"),
        (torch.tensor([[0, 1]]), 2.0, "walks a whole number of tokens; got 2.0"),
    ],
    ids=["list", "numpy", "tokens"],
)
def test_other_types_are_named(table, tokens, sentence):
    with pytest.raises(TypeError, match=sentence):
        ScanOrder(table, tokens)


def test_empty_steps_hide_values_that_are_not_numbers():
    order = ScanOrder(torch.tensor([[1, -1]]), tokens=2)
    values = torch.tensor([[[float("nan")], [2.0]]])
    assert order.gather(values).flatten().tolist() == [2, 0]


def test_a_token_visited_twice_is_read_twice():
    order = ScanOrder(torch.tensor([[0, 1, 0]]), tokens=2)
    assert order.gather(torch.tensor([[[1.0], [2.0]]])).flatten().tolist() == [1, 2, 1]
    assert order.visits.tolist() == [[2, 1]]


@pytest.mark.parametrize("shape", [(1, 3, 2), (1, 1, 2), (1, 2, 3, 2), (1, 2, 1, 2), (2, 2)], ids=str)
def test_gather_refuses_another_grid_or_other_directions(shape):
    """Of more tokens or directions than the order has, the rest was left out without a word."""
    order = ScanOrder(torch.tensor([[0, 1], [1, 0]]), tokens=2)
    with pytest.raises(ValueError, match=r"values have shape .* as the order has 2 tokens and 2 directions"):
        order.gather(torch.zeros(shape))


def test_gather_passes_gradients_back():
    order = ScanOrder(torch.tensor([[2, 0, -1, 1], [0, 1, 2, 2]]), tokens=3)
    values = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(order.gather, values)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_table_is_a_copy(dtype):
    """Tables are checked once, and kernels read memory where they point."""
    given = torch.tensor([[0, 1, 2]], dtype=dtype)
    order = ScanOrder(given, tokens=3)
    given.numpy()[:] = 10**6
    assert order.table.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("table", "tokens", "sentence"),
    [
        ([[0, 1, 3]], 3, "entries from 0 to 3; expected tokens 0 to 2, or -1"),
        ([[-2, 0]], 3, "entries from -2 to 0; expected tokens 0 to 2, or -1"),
        ([0, 1, 2], 3, r"\(directions, steps\); got shape \(3,\)"),
        ([[]], 3, r"\(directions, steps\); got shape \(1, 0\)"),
    ],
)
def test_a_wrong_table_is_refused(table, tokens, sentence):
    with pytest.raises(ValueError, match=sentence):
        ScanOrder(torch.tensor(table, dtype=torch.int64), tokens=tokens)
    with pytest.raises(ValueError, match=r"holds integers; got torch\.bool"):
        ScanOrder(torch.ones(1, 2, dtype=torch.bool), tokens=2)


def test_a_table_of_fractions_is_refused():
    with pytest.raises(ValueError, match=r"integers; got torch\.float32"):
        ScanOrder(torch.tensor([[0.0, 1.5]]), tokens=2)


def test_a_new_order_is_found_by_name(scratch_registry):
    @scan_order
    def backwards(height, width):
        """Last token first."""
        return torch.arange(height * width).flip(0)[None]

    assert order_named("backwards") is backwards
    assert "backwards" in order_names()
    assert backwards(1, 3).table.tolist() == [[2, 1, 0]]
    assert backwards.__doc__ == "Last token first."


def test_table_is_a_plain_cpu_tensor_in_every_mode(scratch_registry):
    """It may be used outside of the mode or device that it is made in."""

    @scan_order
    def made_in_modes(height, width):
        """Row after row."""
        return torch.arange(height * width)[None]

    with torch.inference_mode(), torch.device("meta"):
        order = made_in_modes(2, 3)
    assert order.table.device.type == "cpu" and not order.table.is_inference()
    assert order.table.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_a_second_order_of_one_name_is_refused(scratch_registry):
    with pytest.raises(ValueError, match="a scan order named 'cross' exists already; give the new one another name"):

        @scan_order
        def cross(height, width):
            return torch.arange(height * width)[None]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no scan order is named 'crosss'; known: .*\bcross\b.*\braster\b"):
        order_named("crosss")


def test_an_order_that_leaves_its_grid_is_refused(scratch_registry):
    @scan_order
    def beyond(height, width):
        return torch.arange(height * width + 1)[None]

    with pytest.raises(ValueError, match="expected tokens 0 to 5"):
        beyond(2, 3)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("windows(", "'windows.' does not name a scan order; expected a name, or a name with a whole number"),
        ("", "'' does not name a scan order"),
        ("windows()", "'' is not a whole number; expected a name such as 'windows.7.'"),
        ("windows(seven)", "'seven' is not a whole number"),
        ("windows(7.0)", "'7.0' is not a whole number"),
        ("windows(-1)", "'-1' is not a whole number"),
        ("windows(__import__('os'))", "is not a whole number"),
        ("windows(0)", r"windows\(0\): expected a whole number from 1"),
        ("raster(3)", r"'raster' takes no number, but 'raster\(3\)' gives one; write 'raster'"),
        ("window(3)", r"no scan order is named 'window\(3\)'; known: .*\bwindows\b"),
    ],
)
def test_nonsense_for_a_name_is_refused(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        order_named(name)


@pytest.mark.parametrize("number", [0, 2.0, "2", True, None])
def test_a_number_that_makes_no_sense_is_refused(number):
    with pytest.raises(ValueError, match="expected a whole number from 1"):
        order_named("windows").order(number)


def test_a_new_order_with_a_number_is_found_by_name(scratch_registry):
    @scan_order_with(default=2)
    def rotated(by, height, width):
        """Rows, begun at another token."""
        return torch.arange(height * width).roll(-by)[None]

    assert rotated(1)(1, 3).table.tolist() == [[1, 2, 0]]
    assert order_named("rotated") == rotated(2) == order_named("rotated(2)") != rotated(1)
    assert rotated.__doc__ == "Rows, begun at another token."
    with pytest.raises(ValueError, match=r"'rotated\(2\)' needs a grid of at least 1 x 1 tokens; got 0 x 3"):
        rotated(2)(0, 3)


def test_registry_fixture_leaves_nothing_behind():
    assert {"backwards", "beyond", "rotated"}.isdisjoint(order_names())
