"""Spatial-Mamba: the fusion of states."""

import torch
from torch.nn import functional as F

from vssm.models.spatialmamba import StateFusion, StructureAwareSSM


def test_fusion_is_one_kernel_of_11_by_11_on_a_map_with_repeated_borders() -> None:
    """The form that the official code evaluates."""
    fusion, states = StateFusion(3), torch.randn(2, 4, 6, 3)
    merged = torch.zeros(3, 1, 11, 11)
    with torch.no_grad():
        for kernel in fusion.kernels:
            kernel.normal_()
        fusion.alpha.normal_()
        for kernel, alpha, dilation in zip(fusion.kernels, fusion.alpha, (1, 3, 5), strict=True):
            merged[:, :, 5 - dilation : 6 + dilation : dilation, 5 - dilation : 6 + dilation : dilation] += (
                alpha * kernel
            )
        padded = F.pad(states.permute(0, 3, 1, 2), [5] * 4, mode="replicate")
        expected = F.conv2d(padded, merged, groups=3).permute(0, 2, 3, 1)
        torch.testing.assert_close(fusion(states), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_is_changed_after_an_evaluation_counts_in_the_next() -> None:
    """official: the kernels of the first evaluation are kept for all others, which averaged weights then share."""
    mixer, x = StructureAwareSSM(8).eval(), torch.randn(1, 7, 9, 8)
    before = mixer(x)
    mixer.fusion.alpha += 100
    alpha = mixer(x)
    mixer.fusion.kernels[2].neg_()
    assert (alpha - before).abs().max() > 1e-3 and (mixer(x) - alpha).abs().max() > 1e-3
