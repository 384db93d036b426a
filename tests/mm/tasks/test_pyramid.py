"""The simple feature pyramid: sizes, what each map sees, gradients, and errors."""

import pytest
import torch
from mmdet.registry import MODELS as MMDET

import vssm.mm  # noqa: F401
from vssm.errors import ConfigError
from vssm.mm.tasks.pyramid import SimpleFeaturePyramid


@pytest.mark.parametrize("num_outs", [4, 5, 6])
@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1)])
def test_sizes_follow_the_strides(num_outs: int, size: tuple[int, int]) -> None:
    neck = MMDET.build({"type": "SimpleFeaturePyramid", "in_channels": 16, "out_channels": 8, "num_outs": num_outs})
    maps = neck((torch.randn(2, 7, 9, 9), torch.randn(2, 16, *size)))
    ratios = [4, 2, 1, 1 / 2, 1 / 4, 1 / 8][:num_outs]
    rows, columns = ([-int(-side * ratio // 1) for ratio in ratios] for side in size)
    assert [tuple(y.shape) for y in maps] == [(2, 8, r, c) for r, c in zip(rows, columns, strict=True)]


def test_every_map_sees_its_own_place() -> None:
    """One position of the input changes the positions of each map over it, and their neighbours by the 3 x 3."""
    torch.manual_seed(0)
    neck = SimpleFeaturePyramid(in_channels=16, out_channels=8, num_outs=4)
    x = torch.randn(1, 16, 8, 8)
    changed = x.clone()
    changed[:, :, 5, 2] += 100
    for y, z, ratio in zip(neck([x]), neck([changed]), (4, 2, 1, 0.5), strict=True):
        rows, columns = (y - z).abs().amax((0, 1)).gt(1e-4).nonzero().unbind(1)
        assert rows.min() == max(int(5 * ratio) - 1, 0) and rows.max() == -int(-6 * ratio // 1) + 1 - 1
        assert columns.min() == max(int(2 * ratio) - 1, 0) and columns.max() == -int(-3 * ratio // 1) + 1 - 1


def test_the_fifth_map_is_every_second_place_of_the_fourth() -> None:
    neck = SimpleFeaturePyramid(in_channels=16, out_channels=8, num_outs=5)
    maps = neck([torch.randn(1, 16, 12, 12)])
    assert torch.equal(maps[4], maps[3][:, :, ::2, ::2])


def test_every_parameter_gets_a_gradient() -> None:
    neck = SimpleFeaturePyramid(in_channels=16, out_channels=8)
    sum((y * torch.randn_like(y)).sum() for y in neck([torch.randn(2, 16, 4, 4)])).backward()
    assert [n for n, p in neck.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_errors() -> None:
    with pytest.raises(ConfigError, match="num_outs is 3"):
        SimpleFeaturePyramid(in_channels=16, num_outs=3)
    with pytest.raises(ConfigError, match=r"in_channels is \[16, 16\]; expected the last map's"):
        SimpleFeaturePyramid(in_channels=[16, 16])
    with pytest.raises(ConfigError, match=r"last map has 12 channels.*set neck\.in_channels=12"):
        SimpleFeaturePyramid(in_channels=16)([torch.zeros(1, 12, 4, 4)])
