"""MSVMamba: the walk over its half-resolution map."""

from vssm.models.msvmamba import half_order


def test_half_order_is_rows_backwards_then_columns_then_columns_backwards() -> None:
    rows_backwards, by_columns, columns_backwards = half_order(2, 3).table.view(3, 6).tolist()
    assert rows_backwards == [5, 4, 3, 2, 1, 0]
    assert by_columns == [0, 3, 1, 4, 2, 5]
    assert columns_backwards == [5, 2, 4, 1, 3, 0]
