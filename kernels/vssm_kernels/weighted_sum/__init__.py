"""The weighted sum over a scan's directions, and the means that weights are computed from: public functions, ops."""

from __future__ import annotations

from torch import Tensor

from vssm_kernels.dispatch import Backend, why_not_beside
from vssm_kernels.op import Op
from vssm_kernels.weighted_sum import reference, triton_fused
from vssm_kernels.weighted_sum.arguments import MeanArguments, WeightedArguments

# The reference's functions, which autograd does not record: nothing but what is given is saved.
_RECOMPUTING = Backend("recomputing", reference.weigh, reference.weigh_backward, why_not_beside(triton_fused.BACKEND))
_RECOMPUTING_MEANS = Backend(
    "recomputing", reference.means, reference.means_backward, why_not_beside(triton_fused.MEANS)
)
OP = Op("weighted_sum", WeightedArguments, [_RECOMPUTING, triton_fused.BACKEND, reference.BACKEND], fused=True)
MEANS = Op("direction_means", MeanArguments, [_RECOMPUTING_MEANS, triton_fused.MEANS, reference.MEANS], fused=True)


def weighted_sum(y: Tensor, weights: Tensor, z: Tensor | None = None) -> Tensor:
    """silu(z) * (sum over the directions of weights * y), in float32 (float64 for float64 inputs), rounded once.

    Every image weighs its directions for itself. Eager on a GPU it is one kernel each way. Compilers are given plain
    operations of torch, which they fuse as well, and so are CPUs.

    Args:
        y: (batch, tokens, directions, channels), the output of a scan.
        weights: (batch, directions, channels), or with 1 in place of channels.
        z: (batch, tokens, channels), any strides: half of a projection needs no copy. None for the sum alone.

    Returns:
        (batch, tokens, channels), in y's dtype.

    Raises:
        ValueError: shapes or devices that do not fit.
        TypeError: integers where floats belong.

    Source: the gates of RSMamba, arXiv 2403.19654, and of LocalMamba, arXiv 2403.09338.

    >>> import torch
    >>> weighted_sum(torch.ones(1, 3, 2, 4), torch.tensor([[[2.0], [3.0]]]))[0, 0]
    tensor([5., 5., 5., 5.])
    """
    if isinstance(weights, Tensor) and weights.dim() == 3 and weights.shape[2] == 1:
        weights = weights.expand(-1, -1, y.shape[-1])
    return OP(WeightedArguments(y, weights, z))


def direction_means(y: Tensor, z: Tensor | None = None) -> Tensor:
    """The mean over the tokens of silu(z) * y, for each direction; else as `weighted_sum`.

    Args:
        y: (batch, tokens, directions, channels), at least one token.
        z: (batch, tokens, channels), or None.

    Returns:
        (batch, directions, channels), in y's dtype.

    Raises:
        ValueError: shapes or devices that do not fit.
        TypeError: integers where floats belong.

    >>> import torch
    >>> direction_means(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1))
    tensor([[[2.]]])
    """
    return MEANS(MeanArguments(y, z))
