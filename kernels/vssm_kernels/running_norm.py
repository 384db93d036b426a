"""Batch norm by running statistics, with the activation behind it, in one pass over the map: for inference.

Torch's kernel moves a channels-last map in half precision at an eighth of the memory's rate, and the activation is a
pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.activation import tiles_of, told_of
from vssm_kernels.dispatch import runs_eagerly
from vssm_kernels.gpu import Launcher, why_no_triton
from vssm_kernels.kinds import Latest, kind_of
from vssm_kernels.op import needs_gradient

try:
    import triton
    import triton.language as tl

    from vssm_kernels.activation import activated, places
except ImportError:  # why_no_triton reports it
    triton = None

_Activation = Callable[[Tensor], Tensor]
_ACTIVATIONS = (None, F.relu, F.silu, F.gelu)


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: _Activation | None = None,
) -> Tensor:
    """activation((x - mean) / sqrt(variance + eps) * weight + bias), in x's dtype (batch norm, arXiv 1502.03167).

    Eagerly on a GPU and without gradients it is one kernel, whose arithmetic is float32, rounded once. Else it is left
    to torch's own operations.

    Args:
        x: (..., channels).
        mean, variance: (channels,), the running statistics.
        weight, bias: (channels,), or None.
        eps: added to the variance.
        activation: torch.nn.functional's relu, silu or gelu; None for none.

    >>> one = torch.ones(3)
    >>> batch_norm(torch.zeros(2, 3), one, one, None, None, 0.0, F.relu).tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    given = (x, mean, variance, weight, bias)
    if x.is_cuda and runs_eagerly() and not needs_gradient(given):
        kind = kind_of((*given, eps, activation))
        if kind is not None:
            try:
                launch = _plans[kind]
            except KeyError:
                launch = _plans[kind] = _plan(activation, x, eps) if _in_one_kernel(activation, *given) else None
            if launch is not None:
                y = torch.empty_like(x)
                launch(*given, y)
                return y
    y = F.batch_norm(x.movedim(-1, 1), mean, variance, weight, bias, eps=eps).movedim(1, -1)
    return y if activation is None else activation(y)


_plans: dict[Hashable, Launcher | None] = Latest()  # None where torch runs it


def _in_one_kernel(activation: _Activation | None, x: Tensor, *rows: Tensor | None) -> bool:
    present = [row for row in rows if row is not None]
    return (
        activation in _ACTIVATIONS
        and x.numel() > 0
        and x.is_contiguous()
        and all(row.shape == x.shape[-1:] and row.is_contiguous() and row.is_floating_point() for row in present)
        and why_no_triton(x, *present) is None
    )


def _plan(activation: _Activation | None, x: Tensor, eps: float) -> Launcher:
    tiles, blocks, told = tiles_of(x, x.shape[-1])
    told |= {"ACTIVATES": activation is not None, **told_of(activation)}
    return Launcher(norm_kernel, (tiles * blocks,), eps=eps, **told)


if triton is not None:

    @triton.jit
    def norm_kernel(
        x, mean, variance, weight, bias, y, size, eps, ACTIVATES: tl.constexpr, RELU: tl.constexpr, GELU: tl.constexpr,
        CHANNELS: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        column = tl.program_id(0) % BLOCKS * COLUMNS + tl.arange(0, COLUMNS)
        c = column % CHANNELS
        middle = tl.load(mean + c).to(tl.float32)
        scale = tl.rsqrt(tl.load(variance + c).to(tl.float32) + eps)
        if weight is not None:
            scale *= tl.load(weight + c).to(tl.float32)
        place, mask = places(tl.program_id(0) // BLOCKS, column[None, :], size, BLOCKS, ROWS, COLUMNS)
        value = (tl.load(x + place, mask=mask, other=0.0).to(tl.float32) - middle[None, :]) * scale[None, :]
        if bias is not None:
            value += tl.load(bias + c).to(tl.float32)[None, :]
        if ACTIVATES:
            value = activated(value, RELU, GELU)
        tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)
