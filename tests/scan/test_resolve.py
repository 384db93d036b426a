"""What users may write for an order."""

import pickle

import pytest
import torch

from vssm.scan import cross, hilbert, raster, resolve_order, windows


def test_a_name_and_a_function_stand_for_the_same():
    assert resolve_order("hilbert") is resolve_order(hilbert) is hilbert
    assert resolve_order("windows(3)") == windows(3)


def test_a_list_is_stacked_direction_by_direction():
    order = resolve_order(["raster", windows(2), ["cross"]])
    made = order(3, 3)
    assert made.directions == 1 + 2 + 4
    assert made.steps == 16 and made.table[0].tolist() == [*range(9), *[-1] * 7]
    assert torch.equal(made.table[3:, :9], cross(3, 3).table)
    assert order == resolve_order(("raster", "windows(2)", ["cross"]))
    assert torch.equal(pickle.loads(pickle.dumps(order))(3, 3).table, made.table)


def test_an_order_that_returns_a_bare_table_is_told_of_the_decorator():
    with pytest.raises(ValueError, match="returns a Tensor; decorate it with @scan_order"):
        resolve_order(lambda height, width: torch.arange(height * width)[None])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("hilbrt", "no scan order is named 'hilbrt'; known: .*hilbert"),
        ([], r"\[\] is no scan order; expected a name, an order function, or a list of these"),
        (7, "7 is no scan order"),
        (["raster", None], "None is no scan order"),
        (windows, r"windows takes a number: write windows\(7\)"),
        (raster(2, 2), "is no scan order"),
    ],
)
def test_anything_else_is_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        resolve_order(wrong)
