"""Stems, downsampling and norms on channels-last maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import nn

from vssm.nn import (
    BranchLayerNorm,
    BranchRMSNorm,
    ChannelsLastConv2d,
    ConvDownsample,
    ConvStem,
    LeanMlp,
    PatchMerging,
    PatchStem,
)


def test_convolution_is_torchs_and_stays_channels_last() -> None:
    conv, x = ChannelsLastConv2d(4, 6, kernel_size=3, stride=2, padding=1), torch.randn(2, 9, 7, 4)
    expected = F.conv2d(x.permute(0, 3, 1, 2).contiguous(), conv.weight, conv.bias, stride=2, padding=1)
    torch.testing.assert_close(conv(x), expected.permute(0, 2, 3, 1))
    assert conv(x).is_contiguous()


@pytest.mark.parametrize("stem", [PatchStem(3, 8), PatchStem(3, 8, norm=nn.LayerNorm), ConvStem(3, 8)])
def test_stems_are_channels_last_from_the_first_map(stem: nn.Module) -> None:
    output = stem(torch.randn(2, 3, 16, 24))
    assert output.shape == (2, 4, 6, 8) and output.is_contiguous()


def test_conv_stem_and_downsample_round_odd_sizes_up() -> None:
    assert ConvStem(3, 8)(torch.randn(1, 3, 33, 29)).shape == (1, 9, 8, 8)
    assert ConvDownsample(8, 16)(torch.randn(1, 9, 8, 8)).shape == (1, 5, 4, 16)


def test_patch_merging_takes_neighbours_in_the_order_of_the_checkpoints() -> None:
    """The concatenation as Swin writes it, with odd sizes padded by zeros at the bottom and the right."""
    merging, x = PatchMerging(3, 6), torch.randn(2, 5, 7, 3)
    padded = F.pad(x, (0, 0, 0, 1, 0, 1))
    corners = [padded[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    torch.testing.assert_close(merging(x), merging.reduction(merging.norm(torch.cat(corners, -1))))


@pytest.mark.parametrize("kind", [BranchLayerNorm, BranchRMSNorm])
def test_branch_norms_read_float32_and_return_what_matrix_products_take(kind: type[nn.Module]) -> None:
    norm, x = kind(64), 100 * torch.randn(3, 64)
    nn.init.normal_(norm.weight)
    centered = x - x.mean(-1, keepdim=True) if kind is BranchLayerNorm else x
    expected = centered * torch.rsqrt(centered.square().mean(-1, keepdim=True) + 1e-5) * norm.weight
    torch.testing.assert_close(norm(x), expected)
    with torch.autocast("cpu", torch.float16):
        assert norm(x).dtype == torch.float16
        torch.testing.assert_close(norm(x).float(), expected, rtol=1e-3, atol=1e-3)
    half = norm.to(torch.bfloat16)(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("kind", "torchs"), [(BranchLayerNorm, nn.LayerNorm), (BranchRMSNorm, nn.RMSNorm)])
def test_branch_norms_load_torchs_weights_and_merge_directions(kind: type[nn.Module], torchs: type[nn.Module]) -> None:
    reference, directions = torchs(64, eps=1e-5), torch.randn(2, 5, 3, 64)
    nn.init.normal_(reference.weight)
    norm = kind(64)
    norm.load_state_dict(reference.state_dict())
    torch.testing.assert_close(norm(directions, merge=True), reference(directions.sum(2)))
    torch.testing.assert_close(norm(directions), reference(directions))


def test_lean_mlp_is_timms_and_keeps_no_wide_tensor_twice() -> None:
    lean, timms = LeanMlp(4, 16), Mlp(4, 16)
    timms.load_state_dict(lean.state_dict())
    wide, gradients = {}, {}
    for mlp in (lean, timms):
        x, kept = torch.linspace(-2, 2, 24).view(2, 3, 4).requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.shape[-1]) or t, lambda t: t):
            mlp(x).square().sum().backward()
        wide[mlp] = kept.count(16)
        gradients[mlp] = [x.grad, *(parameter.grad for parameter in mlp.parameters())]
    torch.testing.assert_close(gradients[lean], gradients[timms])
    assert wide[lean] < wide[timms]
