"""Non-causal state-space duality in plain torch, whose matrix products are as fast as kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.dispatch import reference_backend
from vssm_kernels.noncausal_ssd.arguments import SSDArguments


def duality(args: SSDArguments, save: bool = False) -> tuple[Tensor, None]:
    """(batch, tokens, heads, channels), in float32 at least."""
    u, delta, A, B, C, D, delta_bias = args.wide()
    weight = A * F.softplus(delta + delta_bias)
    h = B.transpose(1, 2) @ (weight[..., None] * u).flatten(2)  # (batch, state, heads * channels); OpenVINO has no mT
    return (C @ h).view_as(u) + D[:, None] * u, None


def duality_backward(args: SSDArguments, gradient: Tensor) -> tuple[Tensor, ...]:
    """The gradients of all tensors, from these alone: h is computed once more, and nothing in float32 is saved."""
    u, delta, A, B, C, D, delta_bias = args.wide()
    delta = delta + delta_bias
    step = F.softplus(delta)
    weight = A * step
    added = (weight[..., None] * u).flatten(2)
    dy = gradient.reshape(added.shape)  # and not flatten, which torch cannot vectorize over many gradients
    h, dh = B.mT @ added, C.mT @ dy
    dadded = (B @ dh).view_as(u)
    dweight = (dadded * u).sum(-1)
    ddelta = dweight * A * torch.sigmoid(delta)
    gradients = SSDArguments(
        u=weight[..., None] * dadded + D[:, None] * gradient,
        delta=ddelta,
        A=(dweight * step).sum((0, 1)),
        B=added @ dh.mT,
        C=dy @ h.mT,
        D=(gradient * u).sum((0, 1, 3)),
        delta_bias=ddelta.sum((0, 1)),
    )
    return tuple(each.to(tensor.dtype) for each, tensor in zip(gradients, args, strict=True))


BACKEND = reference_backend(duality, duality_backward)
