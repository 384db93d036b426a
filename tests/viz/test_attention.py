"""Hidden attention: the matrix times the input is the scan's output."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from families import CLASSES
from PIL import Image

import vssm  # noqa: F401
from vssm.nn import SelectiveScan
from vssm.scan import OrderFunction, ScanOrder, cross, hilbert, raster, windows
from vssm.viz import attention, attention_maps, draw_attention, hidden_attention, scan_input, scan_names

VIM = ("vim_tiny", {"embed_dim": 32, "depth": 2, "img_size": 64})
VMAMBA = ("vmamba_tiny", {"dims": (16, 24), "depths": (1, 2)})


def twice(height: int, width: int) -> ScanOrder:
    """A direction that visits tokens several times, with empty steps between."""
    return ScanOrder(torch.tensor([[0, -1, 2, 0, 5, -1, 2, 1]]), height * width)


def matrix(given: attention.ScanInput) -> torch.Tensor:
    """(tokens, directions, channels, tokens)."""
    return torch.stack([hidden_attention(given, token) for token in range(given.tokens.shape[0])])


@pytest.mark.parametrize("order", [raster, cross, hilbert, windows(2), twice], ids=lambda order: order.__name__)
@pytest.mark.parametrize("apart", [False, True], ids=["shared", "apart"])
def test_matrix_times_input_is_the_output(order: OrderFunction, apart: bool) -> None:
    torch.manual_seed(0)
    made = order(3, 4)
    scan = SelectiveScan(channels=6, directions=made.directions, state=5, rank=2)
    with torch.no_grad():
        scan.dt_bias += 3  # decay that matters
        scan.D.normal_()
    tokens = torch.randn(12, made.directions, 6) if apart else torch.randn(12, 6)
    given = attention.ScanInput("scan", scan, tokens, made)
    apart_tokens = tokens if apart else tokens[:, None].expand(-1, made.directions, -1)
    attended = torch.einsum("tkcs,skc->tc", matrix(given), apart_tokens)
    skip = (scan.D * apart_tokens * made.visits.T[..., None]).sum(1)
    expected = scan(tokens[None], made.table, merge=True)[0]
    torch.testing.assert_close(attended + skip, expected, rtol=1e-4, atol=1e-5)
    assert attended.abs().max() > 1e-2, "a matrix of zeros proves nothing"


def test_a_large_step_takes_no_digits_of_what_follows() -> None:
    torch.manual_seed(0)
    made = raster(3, 4)
    scan, tokens = SelectiveScan(channels=6, directions=1, state=5, rank=2), torch.randn(12, 6)
    large = torch.cat([1e6 * tokens[:1], tokens[1:]])
    rows = [hidden_attention(attention.ScanInput("scan", scan, each, made), 11)[..., 1:] for each in (tokens, large)]
    torch.testing.assert_close(rows[1], rows[0])


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind[0])
def test_of_a_model(kind: tuple[str, dict]) -> None:
    """Inside a model too; the gate is left out, as it is not part of the scan."""
    torch.manual_seed(0)
    model, image = timm.create_model(kind[0], **kind[1]), torch.randn(3, 64, 64)
    if not scan_names(model):
        with pytest.raises(ValueError, match="has no selective scan: there is no hidden attention to show"):
            scan_input(model, image)
        return
    first = model.get_submodule(scan_names(model)[0])
    walked = []
    hook = first.register_forward_hook(lambda *_: walked.append(1))
    model.eval()(image[None])
    hook.remove()
    if type(first) is not SelectiveScan or not walked:
        with pytest.raises(ValueError, match="do more than to walk along an order"):
            scan_input(model, image, layer=0)
        return
    given = scan_input(model, image, layer=0)
    assert given.name == scan_names(model)[0] and given.scan is model.get_submodule(given.name)
    apart = given.tokens if given.tokens.dim() == 3 else given.tokens[:, None].expand(-1, given.order.directions, -1)
    chosen = len(given.tokens) // 3
    row = hidden_attention(given, chosen)
    visits = (given.order.table == chosen).sum(1, keepdim=True)  # the skip D is added at each visit of a direction
    attended = torch.einsum("kcs,skc->c", row, apart) + (given.scan.D * visits * apart[chosen]).sum(0)
    with torch.no_grad():
        torch.testing.assert_close(
            attended, given.scan(given.tokens[None], given.order.table, merge=True)[0, chosen], rtol=1e-4, atol=1e-5
        )
    _, (row, column), maps = attention_maps(model, image, (0.4, 0.6), 0)  # a class token, where there is one, left out
    height, width = maps.shape[1:]
    assert height == width and (row, column) == (int(0.4 * height), int(0.6 * width))
    assert maps[:, row, column].sum() > 0, "a token attends to itself"


def test_a_direction_attends_to_what_it_has_passed() -> None:
    torch.manual_seed(0)
    _, token, maps = attention_maps(
        timm.create_model("vmamba_tiny", **VMAMBA[1]), torch.randn(3, 64, 64), (0.3, 0.7), 0
    )
    assert maps.shape == (4, 16, 16) and token == (4, 11)
    rows_before, columns_before = maps[0], maps[1]
    assert (rows_before[:4] > 0).all() and (rows_before[5:] == 0).all() and (rows_before[4, 12:] == 0).all()
    assert (columns_before[:, :11] > 0).all() and (columns_before[:, 12:] == 0).all()


@pytest.mark.parametrize("place", [(0.0, 0.0), (0.4, 0.9), (0.5, 0.5), (1.0, 1.0)])
def test_class_token_of_vim_is_not_on_the_map(place: tuple[float, float]) -> None:
    """In the forward direction no patch after the chosen one contributes, in the backward direction none before."""
    torch.manual_seed(0)
    model = timm.create_model("vim_tiny", **VIM[1])
    _, (row, column), maps = attention_maps(model, torch.randn(3, 64, 96), place, 0)
    assert maps.shape == (2, 4, 6)
    forwards, backwards = maps[0].ravel(), maps[1].ravel()
    chosen = row * 6 + column
    assert (forwards[: chosen + 1] > 0).all() and (forwards[chosen + 1 :] == 0).all()
    assert (backwards[chosen:] > 0).all() and (backwards[:chosen] == 0).all()


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = timm.create_model("vmamba_tiny", **VMAMBA[1]), torch.randn(3, 64, 64)
    with pytest.raises(ValueError, match="this model has 3 scans, so expected -3 to 2"):
        scan_input(model, image, 3)
    with pytest.raises(ValueError, match="two numbers from 0 to 1"):
        attention_maps(model, image, (0.5, 1.5))
    given = scan_input(model, image, 0)
    with pytest.raises(ValueError, match="token is 256; expected 0 to 255"):
        hidden_attention(given, 256)
    monkeypatch.setattr(attention, "MEMORY_LIMIT", attention.memory_needed(given) - 1)
    with pytest.raises(ValueError, match=r"GiB twice, and the limit is .* take a smaller image, or a deeper layer"):
        hidden_attention(given, 0)
    assert not given.scan._forward_pre_hooks, "the hook is gone"


def test_memory_is_that_of_the_largest_tensor() -> None:
    given = scan_input(timm.create_model("vmamba_tiny", **VMAMBA[1]), torch.randn(3, 64, 64), 0)
    assert attention.memory_needed(given) == 4 * 256 * 16 * 1


def test_picture(tmp_path: Path) -> None:
    maps = np.random.default_rng(0).random((8, 5, 7))
    file = draw_attention(Image.new("L", (70, 50)), (4, 6), maps, "eight", path=tmp_path / "new" / "attention.png")
    with Image.open(file) as picture:
        assert picture.width > 6 * 200 and picture.height > 2 * 150, "ten panels in two rows"


def test_a_scan_without_a_table_walks_in_raster_order() -> None:
    """The half-resolution tokens of the first MSVMamba stand in the order of their walk: 4 x 4 of them, three times."""
    model = timm.create_model("msvmamba_nano", dims=(16, 32), depths=(1, 1))
    given = scan_input(model, torch.randn(3, 32, 32), 1)
    assert given.order.table.tolist() == [list(range(48))]
    row = hidden_attention(given, 10)[0].abs().sum(0)
    assert (row[:11] > 0).all() and (row[11:] == 0).all()
