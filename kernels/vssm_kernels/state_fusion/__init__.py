"""A map of states fused with that of its neighbours, near and far: the public function and its op."""

from __future__ import annotations

from torch import Tensor

from vssm_kernels.dispatch import Backend, why_not_beside
from vssm_kernels.op import Op
from vssm_kernels.state_fusion import reference, triton_fused
from vssm_kernels.state_fusion.arguments import FusionArguments

# The reference's functions, which autograd does not record: nothing but the states and the weight is kept.
CONVOLUTIONS = Backend(
    "convolutions", reference.fusion, reference.fusion_backward, why_not_beside(triton_fused.BACKEND)
)
OP = Op("state_fusion", FusionArguments, [CONVOLUTIONS, triton_fused.BACKEND, reference.BACKEND])


def state_fusion(states: Tensor, weight: Tensor) -> Tensor:
    """The sum of 3 x 3 depthwise convolutions of dilation 1, 3, 5 ..., which repeat the map's border.

    At row y and column x, with rows and columns outside of the map read at its border,

        sum over d, i, j of weight[d, :, i, j] states[:, y + (2d + 1)(i - 1), x + (2d + 1)(j - 1)]

    In float32 (float64 for float64 inputs), as states are.

    Args:
        states: (batch, height, width, channels).
        weight: (dilations, channels, 3, 3).

    Returns:
        (batch, height, width, channels) in float32 at least.

    Raises:
        ValueError: shapes or devices that do not fit.
        TypeError: integers where floats belong.

    Source: Spatial-Mamba, arXiv 2410.15091.

    >>> import torch
    >>> state_fusion(torch.ones(1, 2, 5, 4), torch.ones(3, 4, 3, 3))[0, 0, 0]
    tensor([27., 27., 27., 27.])
    """
    return OP(FusionArguments(states, weight))
