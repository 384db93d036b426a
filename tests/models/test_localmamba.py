"""LocalMamba: an order for each block, and the official places of columns on grids that are not square."""

from __future__ import annotations

import pytest
import timm
import torch
from families import KINDS

from vssm.models._local_mixers import OfficialColumns
from vssm.models.localmamba import LocalVimWithClassToken
from vssm.scan import columns, cross

SMALL = {name: arguments for name, arguments in KINDS if name.startswith("local_")}


def test_official_columns_are_those_of_an_inverse_with_height_and_width_exchanged() -> None:
    tokens = torch.arange(6)
    y = tokens.view(1, 6, 1, 1).expand(1, 6, 4, 1)
    placed = OfficialColumns(cross)(y, 2, 3)[0, ..., 0]
    scanned = tokens[columns(2, 3).table[0].long()]
    wrong = scanned.view(2, 3).T.flatten()
    for direction, expected in enumerate((tokens, wrong, tokens, wrong)):
        torch.testing.assert_close(placed[:, direction], expected)
    assert not torch.equal(wrong, tokens)


@pytest.mark.parametrize("name", ["local_vim_tiny", "local_vmamba_tiny"])
def test_official_columns_matter_where_the_grid_is_not_square(name: str) -> None:
    ours = timm.create_model(name, **SMALL[name]).eval()
    official = timm.create_model(name, **SMALL[name], official_columns=True).eval()
    official.load_state_dict(ours.state_dict())
    for size, same in (((64, 64), True), ((64, 96), False)):
        x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.equal(ours(x), official(x)) is same


def test_the_class_token_is_met_at_step_98_by_every_direction() -> None:
    model = timm.create_model("local_vim_tiny_middle_cls_token", device="meta")
    for block in model.blocks:
        table = block.mixer.order_table(14, 14, torch.device("cpu")).table
        assert table.shape == (4, 197) and (table[:, 98] == 98).all()


def test_official_columns_with_a_class_token_are_refused() -> None:
    with pytest.raises(ValueError, match="official code takes square images alone"):
        LocalVimWithClassToken(official_columns=True, device="meta")


@pytest.mark.parametrize(("name", "blocks"), [("local_vim_tiny", 3), ("local_vmamba_tiny", 4)])
def test_an_order_for_each_block(name: str, blocks: int) -> None:
    orders = ["raster", "columns", ["local(2)", "windows(3)"], "cross"]
    model = timm.create_model(name, **SMALL[name], scan_orders=orders)
    mixers = [module for module in model.modules() if hasattr(module, "order_table") and hasattr(module, "scan")]
    assert [mixer.scan.directions for mixer in mixers] == [1, 1, 3, 4][:blocks]
    with pytest.raises(ValueError, match=f"scan_orders has 1 entries and there are {blocks} blocks"):
        timm.create_model(name, **SMALL[name], scan_orders=["raster"])
