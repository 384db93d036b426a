"""HRVMamba: what is added to what, and maps that come side by side instead of one after the other."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from vssm.models import FAMILIES, HRVMamba
from vssm.models._high_resolution import Fusion
from vssm.models.hrvmamba import ESInB

SMALL = FAMILIES["hrvmamba"].small["hrvmamba_nano"]


def small(**arguments: object) -> HRVMamba:
    torch.manual_seed(0)
    return timm.create_model("hrvmamba_nano", **{**SMALL, "num_classes": 5, **arguments}).eval()


def test_the_residual_adds_the_raw_map() -> None:
    """official: the position changes what is normed and not what is added."""
    part, x = ESInB(8, position=True), torch.randn(1, 3, 5, 8)
    for conv in part.convs:
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    assert torch.equal(part(x), x)


def test_quarters_take_turns() -> None:
    part, x = ESInB(8, position=False), torch.randn(1, 3, 5, 8)
    part.norm = nn.Identity()
    for i, conv in enumerate(part.convs):
        nn.init.zeros_(conv.weight)
        nn.init.constant_(conv.bias, i)
    expected = nn.functional.gelu(torch.arange(4.0)).repeat_interleave(2).view(4, 2).T.flatten()
    torch.testing.assert_close(part(x) - x, expected.expand_as(x))


@pytest.mark.parametrize("size", [(8, 8), (9, 7)], ids=str)
def test_coarser_maps_are_enlarged_then_resized_where_sizes_were_rounded_up(size: tuple[int, int]) -> None:
    fusion = Fusion((4, 4), branch=0).eval()
    fine, coarse = torch.zeros(1, 4, *size), torch.rand(1, 4, -(-size[0] // 2), -(-size[1] // 2))
    nn.init.dirac_(fusion[1].conv.weight)
    doubled = nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    expected = nn.functional.interpolate(doubled, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(fusion([fine, coarse]), expected / (1 + 1e-5) ** 0.5)


def test_maps_of_the_neck() -> None:
    """128, 256, 512 channels and the classifier's; the last is what the classifier reads, pruned or not."""
    model, x = small(neck_maps=True), torch.randn(1, 3, 64, 96)
    assert [info["num_chs"] for info in model.feature_info] == [128, 256, 512, 2048]
    with torch.no_grad():
        features, maps = model.forward_intermediates(x, output_fmt="NHWC")
        assert [tuple(y.shape[1:]) for y in maps] == [(16, 24, 128), (8, 12, 256), (4, 6, 512), (2, 3, 2048)]
        assert torch.equal(maps[-1], features) and torch.equal(model.forward_head(features), model(x))
        model.prune_intermediate_layers([0, 1])
        again = model.forward_intermediates(x, intermediates_only=True, indices=[0, 1], output_fmt="NHWC")
    torch.testing.assert_close(again, maps[:2])
    assert "neck.downsample.1.conv.weight" not in model.state_dict() and model.num_features == 256


def test_pruned_to_some_branches_every_parameter_is_needed() -> None:
    model, x = small(), torch.randn(2, 3, 64, 64)
    expected = model.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
    assert model.prune_intermediate_layers([0, 2]) == [0, 2]
    maps = model.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
    torch.testing.assert_close(maps, expected)
    sum(y.sum() for y in maps).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_wrong_widths_are_named() -> None:
    with pytest.raises(ValueError, match="expected the channels of two branches or more"):
        small(dims=(8,), depths=(1,))
    with pytest.raises(ValueError, match="there are 18 channels; expected a multiple of 4"):
        small(dims=(8, 18), depths=(1, 1))
