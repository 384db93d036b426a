"""Less memory in training: recompute cheap activations in the backward instead of saving them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssm.nn.product import is_one_product
from vssm.nn.reading import has_hooks
from vssm.ops import bias_gelu, gelu_again, is_transformed, sum_gate, sum_gate_again


def product_of_recomputed(layer: nn.Module, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """layer(function(*inputs)), with the inputs saved for the backward and not what the layer is given.

    The function has no parameters, draws no random numbers and changes none of its inputs; its operations are cheap
    beside the layer's product, which is not run again. A GELU, with a bias before it (`bias_gelu`) or without, or a
    `Gate` is computed again in the kernel of its gradients.

    A plain call where something else stands in the place of either, or the layer is more than one product: another
    module may hold parameters, draw random numbers or count its calls, as LoRA, dropout and a batch norm do, and hooks
    see all of them. Also under torch.compile, because the compiler decides what to save; under torch.func; and in a
    trace, which must be the same with and without gradients.

    >>> from vssm.nn import Linear
    >>> layer, x = Linear(4, 3), torch.randn(2, 4, requires_grad=True)
    >>> product_of_recomputed(layer, torch.relu, x).sum().backward()
    """
    own = is_one_product(layer, inputs[0]) and (is_gelu(function) or not isinstance(function, nn.Module))
    if not own or has_hooks(layer) or not _recomputes():
        return layer(function(*inputs))
    weight, bias = layer.read(inputs[0])
    return _ProductOfRecomputed.apply(function, _again(function), weight.flatten(1), bias, *inputs)


class Gate:
    """The sum over a scan's directions, (batch, tokens, channels), times scale * silu(z).

    >>> Gate(0.5)(torch.ones(1, 3, 4), torch.zeros(1, 3, 4)).shape
    torch.Size([1, 3, 4])
    """

    def __init__(self, scale: float):
        self.scale = scale

    def __call__(self, total: Tensor, z: Tensor) -> Tensor:
        return sum_gate(total.unsqueeze(2), z, self.scale)

    def again(self, gradient: Tensor, total: Tensor, z: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """What a call returned, and the gradients of the inputs given that of it."""
        value, *gradients = sum_gate_again(total, z, self.scale, gradient)
        return value, tuple(gradients)


GATE = Gate(1.0)  # silu(z) alone


def _again(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, tuple[Tensor | None, ...]]]:
    """(gradient, *inputs) to what the function returned for the inputs, and their gradients."""
    if isinstance(function, Gate):
        return function.again
    if function is bias_gelu or is_gelu(function):
        return _gelu_again
    return partial(_differentiated, function)


def is_gelu(function: Callable[..., Tensor]) -> bool:
    """Whether a function is the exact GELU, of torch's functions or a module that nothing looks at.

    >>> is_gelu(nn.GELU()), is_gelu(nn.GELU("tanh"))
    (True, False)
    """
    exact = type(function) is nn.GELU and function.approximate == "none" and not has_hooks(function)
    return exact or function is F.gelu


def _gelu_again(gradient: Tensor, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
    value, dx, dbias = gelu_again(x, bias, gradient)
    return value, (dx, dbias)  # autograd takes one None more than there are inputs


def _differentiated(
    function: Callable[..., Tensor], gradient: Tensor, *inputs: Tensor
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs]
    with torch.enable_grad():
        value = function(*leaves)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = iter(torch.autograd.grad(value, wanted, gradient.to(value.dtype)) if wanted else ())
    return value.detach(), tuple(next(found) if leaf.requires_grad else None for leaf in leaves)


def _recomputes() -> bool:
    return saves_activations() and not torch.compiler.is_compiling() and not is_transformed()


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
    def forward(ctx, function, again, weight, bias, *inputs):
        ctx.function, ctx.again = function, again
        ctx.save_for_backward(weight, bias, *inputs)
        return F.linear(function(*inputs), weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        weight, bias, *inputs = ctx.saved_tensors
        if torch.is_grad_enabled() or not torch._C._has_storage(gradient):  # second derivatives, many gradients at once
            # Of views: one input may be made of another, or of what that is made of, and this is not to be followed.
            with torch.enable_grad():
                weight, bias, *inputs = (t if t is None else t.view_as(t) for t in (weight, bias, *inputs))
                output = F.linear(ctx.function(*inputs).to(weight.dtype), weight, bias)  # autocast is off by now
            wanted = [t for t in (weight, bias, *inputs) if t is not None and t.requires_grad]
            found = iter(torch.autograd.grad(output, wanted, gradient, create_graph=torch.is_grad_enabled()))
            return (
                None,
                None,
                *(next(found) if t is not None and t.requires_grad else None for t in (weight, bias, *inputs)),
            )
        given, gradients = ctx.again(gradient @ weight, *inputs)
        rows, drows = given.flatten(0, -2), gradient.flatten(0, -2)
        return (
            None,
            None,
            drows.T @ rows.to(drows.dtype) if ctx.needs_input_grad[2] else None,
            drows.sum(0) if ctx.needs_input_grad[3] else None,
            *gradients,
        )
