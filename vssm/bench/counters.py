"""What our operators cost, as other counters of operations ask for it; torch's own knows already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.flop_counter import flop_registry

import vssm.ops  # noqa: F401  (registers the operators and what they cost)

Handle = Callable[[Sequence[Any], Sequence[Any]], int]


def fvcore_handles() -> dict[str, Handle]:
    """For fvcore: `FlopCountAnalysis(model, images).set_op_handle(**fvcore_handles())`.

    fvcore counts one for a multiply-add, as tables in papers do.

    >>> sorted(fvcore_handles())[0]
    'vssm::causal_conv1d'
    """
    return {name: _of_values(formula) for name, _, formula in _formulas()}


def ptflops_hooks() -> dict[Any, Handle]:
    """For ptflops: `get_model_complexity_info(..., backend="aten", custom_modules_hooks=ptflops_hooks())`.

    Its other backend counts modules, not operators, and leaves out the scans and the products among them.

    >>> import torch
    >>> torch.ops.vssm.selective_scan in ptflops_hooks()
    True
    """
    return {operator: _of_tensors(formula) for _, operator, formula in _formulas()}


def _formulas() -> Iterator[tuple[str, Any, Callable[..., int]]]:
    """Name, operator and formula of each of ours."""
    for operator, formula in flop_registry.items():
        name = getattr(operator, "_qualified_op_name", "")
        if name.startswith("vssm::"):
            yield name, operator, formula


def _of_values(formula: Callable[..., int]) -> Handle:
    """Of the values of a TorchScript graph, whose types have their shapes."""
    return lambda inputs, outputs: formula(*map(_shape, inputs)) // 2


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.type().sizes()) if value.isCompleteTensor() else None


def _of_tensors(formula: Callable[..., int]) -> Handle:
    return lambda inputs, outputs: formula(*inputs) // 2
