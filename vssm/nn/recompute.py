"""Less memory in training: recompute cheap activations in the backward instead of saving them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vssm.nn.linear import Linear


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), with only the inputs saved for the backward, which runs the function again.

    Under torch.compile this is a plain call, because the compiler decides what to save; under torch.func too, which
    does not support checkpointing, and in a trace, which must be the same with and without gradients.

    >>> x = torch.randn(3, requires_grad=True)
    >>> recomputed(torch.sin, x).sum().backward()
    """
    if not _recomputes():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def product_of_recomputed(layer: nn.Module, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """layer(function(*inputs)), with the inputs saved for the backward and not what the layer is given.

    The function has no parameters; its operations are cheap beside the layer's product, which is not run again.

    >>> layer, x = Linear(4, 3), torch.randn(2, 4, requires_grad=True)
    >>> product_of_recomputed(layer, torch.relu, x).sum().backward()
    """
    if not _recomputes():
        return layer(function(*inputs))
    if type(layer) is not Linear or layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return recomputed(lambda *saved: layer(function(*saved)), *inputs)  # torch's own, which stops at the product
    return _ProductOfRecomputed.apply(function, *layer.read(inputs[0]), *inputs)


def _recomputes() -> bool:
    return saves_activations() and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


def saves_activations() -> bool:
    """Whether a backward may follow, so that it pays to choose what is saved; never in a trace.

    >>> with torch.no_grad():
    ...     saves_activations()
    False
    """
    return torch.is_grad_enabled() and not torch.jit.is_tracing()


class _ProductOfRecomputed(torch.autograd.Function):
    """Far less of Python than torch's checkpointing, whose hooks take longer than the kernels."""

    @staticmethod
    def forward(ctx, function, weight, bias, *inputs):
        ctx.function = function
        ctx.save_for_backward(weight, bias, *inputs)
        return F.linear(function(*inputs), weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        weight, bias, *inputs = ctx.saved_tensors
        if torch.is_grad_enabled() or not torch._C._has_storage(gradient):  # second derivatives, many gradients at once
            with torch.enable_grad():
                output = F.linear(ctx.function(*inputs), weight, bias)
            wanted = [t for t in (weight, bias, *inputs) if t is not None and t.requires_grad]
            found = iter(torch.autograd.grad(output, wanted, gradient, create_graph=torch.is_grad_enabled()))
            return None, *(next(found) if t is not None and t.requires_grad else None for t in (weight, bias, *inputs))
        leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs]
        with torch.enable_grad():
            given = ctx.function(*leaves)
        rows, drows = given.detach().flatten(0, -2), gradient.flatten(0, -2)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(given, wanted, (gradient @ weight).to(given.dtype)) if wanted else ())
        return (
            None,
            drows.T @ rows.to(drows.dtype) if ctx.needs_input_grad[1] else None,
            drows.sum(0) if ctx.needs_input_grad[2] else None,
            *(next(found) if leaf.requires_grad else None for leaf in leaves),
        )
