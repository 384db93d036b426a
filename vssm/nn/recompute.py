"""Less memory in training: recompute cheap activations in the backward instead of saving them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), with only the inputs saved for the backward, which runs the function again.

    torch's activation checkpointing stops recomputing at the last tensor that it needs: where the function ends in a
    linear layer, the layer's input is recomputed and the layer itself is not run again. Under torch.compile this is a
    plain call, because the compiler decides what to save; under torch.func too, which does not support checkpointing,
    and in a trace, which must be the same with and without gradients.

    >>> x = torch.randn(3, requires_grad=True)
    >>> recomputed(torch.sin, x).sum().backward()
    """
    if torch.compiler.is_compiling() or not saves_activations() or torch._C._are_functorch_transforms_active():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def saves_activations() -> bool:
    """Whether a backward may follow, so that it pays to choose what is saved; never in a trace.

    >>> with torch.no_grad():
    ...     saves_activations()
    False
    """
    return torch.is_grad_enabled() and not torch.jit.is_tracing()
