"""Samples of a map from where each position chooses to read: the public function and its op."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.deformable_sampling import reference, triton_fused
from vssm_kernels.deformable_sampling.arguments import SamplingArguments
from vssm_kernels.dispatch import Backend, why_not_beside
from vssm_kernels.op import Op
from vssm_kernels.saturation import saturate


def _bags(args: SamplingArguments, save: bool = False) -> tuple[Tensor, None]:
    """torch's embedding bags sum what they gather without writing it: ten times as fast as the reference on a CPU."""
    samples = reference.Samples.of(args)
    total = F.embedding_bag(
        samples.corners.flatten(-3).flatten(0, -2),
        reference.table(args),
        per_sample_weights=samples.of_corners().flatten(-3).flatten(0, -2),
        mode="sum",
    )
    return saturate(total.view(args.x.shape), args.output_dtype), None


BAGS = Backend("bags", _bags, reference.sampling_backward, why_not_beside(triton_fused.BACKEND))
OP = Op("deformable_sampling", SamplingArguments, [BAGS, triton_fused.BACKEND, reference.BACKEND])


def deformable_sampling(x: Tensor, predicted: Tensor, groups: int) -> Tensor:
    """The weighted sum of nine samples of a map, each from where a position says, for each group of channels.

    The channels of a group at position p are

        sum over k of weight[p, k] x[p + window[k] + offset[p, k]]

    where the nine places of the 3 x 3 window are those of its columns from left to right, each from top to bottom.
    Between positions x is interpolated bilinearly, outside of the map it is zero. Offsets and weights are not bounded.
    Computed in float32 (float64 where one of the inputs is), and rounded once.

    Args:
        x: (batch, height, width, channels).
        predicted: (batch, height, width, numbers). For each group one after another, the columns and the rows that each
            sample is moved by, nine pairs, then nine weights; numbers after those of the last group are not read.
        groups: of channels that share their samples.

    Returns:
        (batch, height, width, channels), in x's dtype.

    Raises:
        ValueError: shapes or devices that do not fit.
        TypeError: integers where floats belong.

    Source: DCNv4, arXiv 2401.06197.

    >>> import torch
    >>> predicted = torch.tensor([0.0] * 18 + [1.0] * 9).expand(1, 3, 3, -1)  # the window itself, summed
    >>> deformable_sampling(torch.ones(1, 3, 3, 1), predicted, groups=1)[0, :, :, 0]
    tensor([[4., 6., 4.],
            [6., 9., 6.],
            [4., 6., 4.]])
    """
    return OP(SamplingArguments(x, predicted, groups))
