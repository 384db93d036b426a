"""The fusion of states in plain torch: the measure of its kernels, and what runs where there are none."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from vssm_kernels.dispatch import reference_backend
from vssm_kernels.state_fusion.arguments import FusionArguments


def fusion(args: FusionArguments, save: bool = False) -> tuple[Tensor, None]:
    """(batch, height, width, channels)."""
    states, weight = args.wide()
    total = sum(
        F.conv2d(padded(states, dilation), kernel[:, None], dilation=dilation, groups=len(kernel))
        for dilation, kernel in zip(dilations(weight), weight, strict=True)
    )
    return total.permute(0, 2, 3, 1), None


def fusion_backward(args: FusionArguments, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of states and weight."""
    states, weight = args.wide()
    gradient = gradient.to(states.dtype).permute(0, 3, 1, 2)
    dstates, dweight = [], []
    for dilation, kernel in zip(dilations(weight), weight[:, :, None], strict=True):
        read, how = padded(states, dilation), {"dilation": dilation, "groups": len(kernel)}
        dread = conv2d_input(read.shape, kernel, gradient, **how)
        dstates.append(folded(folded(dread, dilation, 2), dilation, 3))
        dweight.append(conv2d_weight(read, kernel.shape, gradient, **how)[:, 0])
    dstates = sum(dstates[1:], dstates[0]).permute(0, 2, 3, 1)
    return dstates.to(args.states.dtype), torch.stack(dweight).to(args.weight.dtype)


def dilations(weight: Tensor) -> range:
    """1, 3, 5 ..."""
    return range(1, 2 * len(weight), 2)


def padded(states: Tensor, margin: int) -> Tensor:
    """(batch, channels, height, width), with the border repeated."""
    return F.pad(states.permute(0, 3, 1, 2), [margin] * 4, mode="replicate")


def folded(gradient: Tensor, margin: int, dim: int) -> Tensor:
    """The gradient of a dimension from that of the dimension with repeated borders: these add to the border.

    >>> folded(torch.ones(1, 6), margin=2, dim=1)
    tensor([[3., 3.]])
    """
    size = gradient.shape[dim] - 2 * margin
    if size == 1:
        return gradient.sum(dim, keepdim=True)
    inner = gradient.narrow(dim, margin + 1, size - 2)
    first, last = (gradient.narrow(dim, start, margin + 1).sum(dim, keepdim=True) for start in (0, margin + size - 1))
    return torch.cat([first, inner, last], dim)


BACKEND = reference_backend(fusion, fusion_backward)
