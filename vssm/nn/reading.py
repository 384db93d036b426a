"""Layers' parameters in the form in which kernels read them: those of a whole block in one kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from vssm.nn.norm import autocast_dtype, product_dtype
from vssm.ops import Form, is_plain, is_watched, read_parameters


class ReadsParameters(nn.Module):
    """A layer whose parameters are cast or laid out before its products: it says how in `to_read`, calls `read`, and
    inside a `Block` shares one kernel with the block's other layers."""

    def to_read(self, on_gpu: bool) -> dict[str, Form]:
        """The parameters by name, those that may be None among them, and the form of each."""
        raise NotImplementedError

    def read(self, x: Tensor) -> tuple[Tensor | None, ...]:
        """The parameters for a product of x, in autocast's dtype where that is on."""
        together = None if torch.compiler.is_compiling() else _together.get()
        if together is not None:
            dtype, found = together
            if self in found and dtype == autocast_dtype(x):
                return found[self]
        return self.read_as(self.to_read(x.is_cuda), x)

    def read_as(self, forms: dict[str, Form], x: Tensor) -> tuple[Tensor | None, ...]:
        """As `read`, by this layer alone."""
        given = {name: getattr(self, name) for name in forms if getattr(self, name) is not None}
        parameters = list(given.values())
        read = read_parameters(parameters, [forms[name] for name in given], product_dtype(x, parameters[0]))
        return tuple(map(dict(zip(given, read, strict=True)).get, forms))


_Found = dict[ReadsParameters, tuple[Tensor | None, ...]]
# Under which autocast a block has read, and what.
_together: ContextVar[tuple[torch.dtype | None, _Found] | None] = ContextVar("vssm_read_together", default=None)


class ReadTogether:
    """For the layers inside a block: one kernel reads the parameters of all of them.

    Only on a GPU, where it pays, and not where a compiler or a trace sees what happens. A layer with hooks before its
    forward, or whose parameters are computed, reads by itself.

    >>> layers = nn.Sequential(nn.Linear(2, 2), nn.GELU())
    >>> with ReadTogether(layers).for_input(torch.randn(1, 2)):
    ...     layers(torch.randn(1, 2)).shape
    torch.Size([1, 2])
    """

    def __init__(self, block: nn.Module):
        self.layers = [layer for layer in block.modules() if isinstance(layer, ReadsParameters)]
        self.forms = [layer.to_read(on_gpu=True) for layer in self.layers]

    @contextmanager
    def for_input(self, x: Tensor) -> Iterator[None]:
        """Inside, the layers find their parameters read, for products of x."""
        found = self._read(x) if type(x) is Tensor and x.is_cuda and not is_watched() else None
        if found is None:
            yield
            return
        token = _together.set(found)
        try:
            yield
        finally:
            _together.reset(token)

    def _read(self, x: Tensor) -> tuple[torch.dtype | None, _Found] | None:
        parameters: list[Tensor] = []
        forms: list[Form] = []
        places: dict[ReadsParameters, list[int | None]] = {}
        for layer, named in zip(self.layers, self.forms, strict=True):
            held = layer._parameters
            if layer._forward_pre_hooks or not held.keys() >= named.keys():
                continue
            places[layer] = where = []
            for name, form in named.items():
                parameter = held[name]
                where.append(None if parameter is None else len(parameters))
                if parameter is not None:
                    parameters.append(parameter)
                    forms.append(form)
        # Those that are sharded, say, are whole only inside their own module.
        if not parameters or not all([is_plain(parameter) for parameter in parameters]):
            return None
        found = read_parameters(parameters, forms, product_dtype(x, parameters[0]))
        return autocast_dtype(x), {
            layer: tuple([None if place is None else found[place] for place in where])
            for layer, where in places.items()
        }
