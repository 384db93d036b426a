"""The weighted sum over directions, and their means, in plain torch: the measure of the kernels, and what compilers
fuse by themselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.dispatch import reference_backend
from vssm_kernels.saturation import saturate, wide
from vssm_kernels.weighted_sum.arguments import MeanArguments, WeightedArguments


def weigh(args: WeightedArguments, save: bool = False) -> tuple[Tensor, None]:
    """(batch, tokens, channels), in y's dtype."""
    y, weights, z = (_wide(tensor) for tensor in args)
    total = (y * weights[:, None]).sum(2)
    return saturate(total if z is None else total * F.silu(z), args.output_dtype), None


def weigh_backward(args: WeightedArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of y, of the weights and of z."""
    y, weights, z = (_wide(tensor) for tensor in args)
    gradient = _wide(gradient)
    given = (gradient if z is None else gradient * F.silu(z))[:, :, None]
    dweights = (given * y).sum(1).to(args.weights.dtype)
    dz = None if z is None else (gradient * _slope(z) * (y * weights[:, None]).sum(2)).to(args.z.dtype)
    return (given * weights[:, None]).to(args.y.dtype), dweights, dz


def means(args: MeanArguments, save: bool = False) -> tuple[Tensor, None]:
    """(batch, directions, channels), in y's dtype."""
    y, z = (_wide(tensor) for tensor in args)
    return saturate((y if z is None else y * F.silu(z)[:, :, None]).mean(1), args.output_dtype), None


def means_backward(args: MeanArguments, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradients of y and of z: those of a sum weighted by the gradient, whose own gradient is one."""
    one = args.y.new_ones(()).expand(args.y[:, :, 0].shape)
    dy, _, dz = weigh_backward(WeightedArguments(args.y, _wide(gradient) / args.y.shape[1], args.z), one)
    return dy, dz


def _wide(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else wide(tensor)


def _slope(z: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(z)
    return sigmoid * (1 + z * (1 - sigmoid))


BACKEND = reference_backend(weigh, weigh_backward)
MEANS = reference_backend(means, means_backward)
