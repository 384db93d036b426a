"""Layers' parameters in the form in which kernels read them: those of a whole block in one kernel."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from vssm.nn.norm import autocast_dtype, product_dtype
from vssm.ops import PLAIN_TENSORS, Form, read_parameters, runs_eagerly


class ReadsParameters(nn.Module):
    """A layer whose parameters are cast or laid out before its products: it says how in `to_read`, calls `read`, and
    inside a `Block` shares one kernel with the block's other layers."""

    def to_read(self, on_gpu: bool) -> dict[str, Form]:
        """The parameters by name, those that may be None among them, and the form of each."""
        raise NotImplementedError

    def read(self, x: Tensor) -> tuple[Tensor | None, ...]:
        """The parameters for a product of x, in autocast's dtype where that is on."""
        together = None if torch.compiler.is_dynamo_compiling() else _together.get()
        if together is not None:
            dtype, places, found, hooks = together
            # Not inside a checkpoint within the block: it runs once more, outside, and has to save the same tensors.
            if self in places and dtype == autocast_dtype(x) and hooks == _saved_tensor_hooks(True):
                return found[places[self]]
        return self.read_as(self.to_read(x.is_cuda), x)

    def read_as(self, forms: dict[str, Form], x: Tensor) -> tuple[Tensor | None, ...]:
        """As `read`, by this layer alone."""
        parameters = [getattr(self, name) for name in forms]
        return read_parameters(parameters, list(forms.values()), product_dtype(x, parameters[0]))


def runs_eagerly_on_gpu(x: Tensor) -> bool:
    """Whether operations on x are launched on a GPU one by one, so that it pays to join them in kernels of ours.

    >>> runs_eagerly_on_gpu(torch.ones(2))
    False
    """
    return type(x) is Tensor and x.is_cuda and runs_eagerly()


def has_hooks(layer: nn.Module) -> bool:
    """Whether something has to see what the layer is given or returns, or the gradients, or is called in its place.

    >>> has_hooks(nn.Linear(2, 2))
    False
    """
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or layer._compiled_call_impl
        or "forward" in layer.__dict__
        or _has_any_global_hook()
    )


# Under which autocast a block has read, the layers' places in what it has read, this, and the hooks on saved tensors.
_Found = tuple[torch.dtype | None, dict[ReadsParameters, slice], tuple[Tensor | None, ...], object]
_saved_tensor_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_together: ContextVar[_Found | None] = ContextVar("vssm_read_together", default=None)


def product_and_bias(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """layer(x) without its bias, and this, for the kernel of the activation that follows to add.

    Torch adds a convolution's bias in a slow kernel of its own, and computes the gradient of any bias in one more.
    Where nothing is gained, or hooks have to see what the layer returns: layer(x) itself, and None.

    Args:
        layer: a linear layer or a convolution, whose class has a `product` of x, weight and bias.
        x: what it takes.

    >>> _, bias = product_and_bias(nn.Linear(4, 6), torch.randn(2, 4))
    >>> bias is None
    True
    """
    own = "product" in type(layer).__dict__  # of a subclass, what is called may be another
    if own and layer.bias is not None and runs_eagerly_on_gpu(x) and not has_hooks(layer):
        weight, bias = layer.read(x)
        return layer.product(x, weight, None), bias
    return layer(x), None


class ReadTogether:
    """For the layers inside a block: one kernel reads the parameters of all of them.

    Only on a GPU, where it pays, and not where a compiler or a trace sees what happens. A layer with hooks before its
    forward, with another in its place, or whose parameters are computed, reads by itself.

    >>> layers = nn.Sequential(nn.Linear(2, 2), nn.GELU())
    >>> ReadTogether(layers).run(layers, torch.randn(1, 2)).shape
    torch.Size([1, 2])
    """

    def __init__(self, block: nn.Module):
        layers = [layer for layer in block.modules() if isinstance(layer, ReadsParameters)]
        self.layers = [(layer, layer.to_read(on_gpu=True)) for layer in layers]

    def run(self, function: Callable[..., Tensor], x: Tensor, *others: Any) -> Tensor:
        """function(x, *others), inside which the layers find their parameters read, for products of x."""
        found = self._read(x) if runs_eagerly_on_gpu(x) else None
        if found is None:
            return function(x, *others)
        token = _together.set(found)
        try:
            return function(x, *others)
        finally:
            _together.reset(token)

    def _read(self, x: Tensor) -> _Found | None:
        parameters: list[Tensor | None] = []
        forms: list[Form] = []
        places = {}
        for layer, named in self.layers:
            held = layer._parameters
            changed = layer._forward_pre_hooks or "forward" in layer.__dict__  # just before it runs
            if changed or not held.keys() >= named.keys():
                continue
            places[layer] = slice(len(parameters), len(parameters) + len(named))
            parameters += [held[name] for name in named]
            forms += named.values()
        # Those that are sharded, say, are whole only inside their own module.
        if not parameters or not _PLAIN_OR_NONE.issuperset(map(type, parameters)):
            return None
        autocast = autocast_dtype(x)
        read = read_parameters(parameters, forms, autocast or parameters[0].dtype)
        return autocast, places, read, _saved_tensor_hooks(True)


_PLAIN_OR_NONE = {*PLAIN_TENSORS, type(None)}
