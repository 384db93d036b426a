"""What files for other programs hold in place of an op: operations of torch alone, chosen for how fast runtimes are.

Rows along a scan order are gathered, both ways. Runtimes gather fast and scatter slowly, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.orders import ScanTable

_standard: ContextVar[bool] = ContextVar("vssm_standard_operations", default=False)


@contextmanager
def standard_operations() -> Iterator[None]:
    """What is exported or traced inside the block needs no operators of ours: its file runs without vssm.

    `torch.onnx.export` does so by itself. The graphs are for inference: no gradient passes through a scan's.

    >>> import torch, vssm_kernels
    >>> norm = lambda x: vssm_kernels.causal_conv1d(x, torch.ones(1, 2, 3), None, torch.tensor([[0, 1]]).int())
    >>> with standard_operations():
    ...     graph = torch.jit.trace(norm, torch.ones(1, 2, 2)).graph
    >>> "vssm::" in str(graph)
    False
    """
    token = _standard.set(True)
    try:
        yield
    finally:
        _standard.reset(token)


def wants_standard() -> bool:
    """Whether a graph is being made that must not hold operators of ours."""
    if torch.compiler.is_dynamo_compiling():  # which could not read what follows, and whose graphs need vssm anyway
        return False
    return _standard.get() or torch.onnx.is_in_onnx_export()


def visits(order: ScanTable | None, steps: int, directions: int, device: torch.device) -> Tensor:
    """The token that each direction visits at each step, -1 for none: (steps, directions) int64."""
    if order is None:
        return torch.arange(steps, device=device)[:, None].expand(steps, directions)
    return order.table.T.long()


def steps_of(order: ScanTable | None, tokens: int, directions: int, device: torch.device) -> Tensor:
    """The step at which each direction visits a token, where it does so once: (tokens, directions) int64."""
    step = visits(None, tokens if order is None else order.steps, directions, device)
    if order is None:
        return step
    token = visits(order, order.steps, directions, device)
    place = torch.where(token < 0, tokens, token)  # empty steps: behind the tokens
    return step.new_zeros(tokens + 1, directions).scatter(0, place, step)[:tokens]


def gathered(values: Tensor, token: Tensor, empty: bool = True) -> Tensor:
    """What each direction reads, zeros where it visits no token.

    Args:
        values: (batch, tokens, channels), read by all directions, or (batch, directions, tokens, channels).
        token: (..., directions) int64, -1 for none.
        empty: whether there may be a -1.

    Returns:
        (batch, ..., directions, channels).
    """
    if values.dim() == 4:
        first = values.shape[2] * torch.arange(values.shape[1], device=token.device)
        place = torch.where(token < 0, -1, token + first)
        return gathered(values.flatten(1, 2), place, empty)
    if empty:
        token = torch.where(token < 0, values.shape[1], token)
        values = F.pad(values, (0, 0, 0, 1))
    return values.index_select(1, token.flatten()).unflatten(1, token.shape)


def scattered(rows: Tensor, order: ScanTable | None, tokens: int) -> Tensor:
    """The way back, (batch, steps, directions, channels) to (batch, tokens, directions, channels).

    Of several visits of a token the sum is taken; there are zeros where a direction never is.
    """
    if order is None:
        return rows
    table = order.table.T.long()
    if order.writes_each_row_once:
        step = steps_of(order, tokens, order.directions, table.device)
        place = step * order.directions + torch.arange(order.directions, device=step.device)
        return rows.flatten(1, 2).index_select(1, place.flatten()).unflatten(1, place.shape)
    batches = torch.arange(len(rows), device=rows.device)[:, None, None]
    places = (batches, torch.where(table < 0, tokens, table), torch.arange(order.directions, device=rows.device))
    sums = rows.new_zeros(rows.shape[0], tokens + 1, *rows.shape[2:])
    return sums.index_put(places, rows, accumulate=True)[:, :tokens]  # on a GPU in a fixed order, unlike scatter_add


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), in ONNX as `softplus_for_onnx`. Not within a loop, where nothing says that ONNX is made."""
    return softplus_for_onnx(x) if torch.onnx.is_in_onnx_export() else F.softplus(x)


def softplus_for_onnx(x: Tensor) -> Tensor:
    """The same in operations that onnxruntime has vectors for, rounded as log1p is; its Softplus has none, and takes
    44 ms for 2.4 million numbers, in a scan of which the steps take 10."""
    small = torch.exp(x.clamp(max=20))
    rounded = 1 + small
    return torch.maximum(x, torch.log(rounded) + (small - (rounded - 1)) / rounded)
