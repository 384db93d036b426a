"""Layers' parameters in the form in which kernels read them: those of a whole block in one kernel."""

from __future__ import annotations

from contextvars import ContextVar
from types import TracebackType

import torch
from torch import Tensor, nn

from vssm.nn.norm import product_dtype
from vssm.ops import Form, is_watched, read_parameters

# What a block has read for its layers: the dtype, and each layer's parameters.
_Read = tuple[torch.dtype, dict[nn.Module, tuple[Tensor, ...]]]
_read: ContextVar[_Read | None] = ContextVar("vssm_read", default=None)


class ReadsParameters(nn.Module):
    """A layer whose parameters are cast or laid out before its products: it says how in `to_read`, calls `read`, and
    inside a `Block` shares one kernel with the block's other layers."""

    def to_read(self, on_gpu: bool) -> tuple[list[Tensor], list[Form]]:
        """The parameters, and the form of each."""
        raise NotImplementedError

    def read(self, x: Tensor) -> tuple[Tensor, ...]:
        """The parameters for a product of x, in autocast's dtype where that is on."""
        parameters, forms = self.to_read(x.is_cuda)
        dtype = product_dtype(x, parameters[0])
        found = None if torch.compiler.is_compiling() else _read.get()
        if found is not None and found[0] == dtype and self in found[1]:
            return found[1][self]
        return read_parameters(parameters, forms, dtype)


class read_together:
    """Inside, the layers of a block find their parameters read, by one kernel.

    Only on a GPU, where it pays, and not where a compiler or a trace sees what happens. A layer with hooks before its
    forward reads by itself, since these may change its parameters.

    Args:
        layers: those of a block that may run inside.
        x: the block's input, which says device and dtype.
    """

    def __init__(self, layers: list[ReadsParameters], x: Tensor):
        self.layers, self.x = layers, x

    def __enter__(self) -> None:
        self.token = None
        if type(self.x) is not Tensor or not self.x.is_cuda or is_watched():
            return
        layers, parameters, forms, ends = [], [], [], []
        for layer in self.layers:
            if not layer._forward_pre_hooks:
                tensors, how = layer.to_read(True)
                layers.append(layer)
                parameters += tensors
                forms += how
                ends.append(len(parameters))
        if not layers or not all(type(parameter) in (Tensor, nn.Parameter) for parameter in parameters):
            return
        dtype = product_dtype(self.x, parameters[0])
        found = read_parameters(parameters, forms, dtype)
        starts = [0, *ends[:-1]]
        self.token = _read.set(
            (dtype, {layer: found[start:end] for layer, start, end in zip(layers, starts, ends, strict=True)})
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.token is not None:
            _read.reset(self.token)


def layers_that_read(module: nn.Module) -> list[ReadsParameters]:
    """Those inside a module."""
    return [layer for layer in module.modules() if isinstance(layer, ReadsParameters)]
