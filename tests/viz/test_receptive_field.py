"""Receptive fields of models whose field is known."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from families import CLASSES
from PIL import Image
from torch import Tensor, nn

import vssm  # noqa: F401
from vssm.viz import area_share, draw_receptive_fields, receptive_field


class Smoothing(nn.Module):
    """One 3 x 3 convolution of ones on every second pixel."""

    def forward_intermediates(self, image: Tensor, indices: list[int], intermediates_only: bool) -> list[Tensor]:
        return [nn.functional.conv2d(image, torch.ones(1, 3, 3, 3), stride=2, padding=1)]


def test_a_convolution_sees_its_kernel() -> None:
    field = receptive_field(Smoothing(), torch.randn(3, 3, 12, 16))
    expected = np.zeros((12, 16))
    expected[5:8, 7:10] = 1 / 9
    np.testing.assert_allclose(field, expected)
    assert area_share(field, 0.9) == 9 / (12 * 16)


@pytest.mark.parametrize(("name", "size"), CLASSES, ids=lambda value: str(value)[:20])
def test_a_scan_sees_the_whole_image(name: str, size: dict) -> None:
    torch.manual_seed(0)
    field = receptive_field(timm.create_model(name, **size), torch.randn(2, 3, 64, 96))
    assert field.shape == (64, 96) and field.sum() == pytest.approx(1)
    blocks = field.reshape(4, 16, 6, 16).sum((1, 3))
    assert (blocks > 0).all(), "scans in several directions reach every patch"


def test_one_direction_sees_only_what_came_before() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vim_tiny", embed_dim=32, depth=2, scan_order="raster")
    field = receptive_field(model, torch.randn(1, 3, 64, 64))
    rows = field.reshape(4, 16, 64).sum((1, 2))
    assert rows[0] > 0 and rows[3] == 0


def test_nothing_to_see_is_refused() -> None:
    model = timm.create_model("vmamba_tiny", dims=(16, 32), depths=(1, 1))
    with pytest.raises(ValueError, match=r"at least one; got \(0, 3, 32, 32\)"):
        receptive_field(model, torch.zeros(0, 3, 32, 32))
    for parameter in model.parameters():
        parameter.data.zero_()
    with pytest.raises(ValueError, match="no pixel influences the feature in the middle"):
        receptive_field(model, torch.randn(1, 3, 32, 32))


def test_area_share_of_an_even_field() -> None:
    assert area_share(np.full((10, 10), 0.01), 0.5) == 0.5
    assert area_share(np.eye(10), 0.9) == pytest.approx(0.09)


def test_picture(tmp_path: Path) -> None:
    fields = [("before", np.eye(20)), ("after", np.ones((20, 30)))]
    with Image.open(draw_receptive_fields(fields, "two", path=tmp_path / "new" / "erf.png")) as picture:
        assert picture.width > 500
