"""An activation with the bias before it, in one pass each way, which torch makes of several kernels.

Torch adds a convolution's bias to a channels-last map in a kernel of its own, which moves a number a thread, and the
gradient of that bias is a slow sum of its own. Here programs sum their shares of it while they compute the map's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.dispatch import runs_eagerly
from vssm_kernels.gpu import Launcher, cdiv, why_no_triton
from vssm_kernels.kinds import Latest, kind_of
from vssm_kernels.op import needs_gradient
from vssm_kernels.shares import shares_launcher

try:
    import triton
    import triton.language as tl

    from vssm_kernels.triton_math import sigmoid
except ImportError:  # why_no_triton reports it
    triton = None

_TILE = {"ROWS": 16, "COLUMNS": 128, "num_warps": 4}
_PROGRAMS_MAX = 2048  # of a backward that sums shares, the same on every device
_STAGES = 2  # tiles that a program of the backward has in flight


def bias_silu(x: Tensor, bias: Tensor | None) -> Tensor:
    """SiLU(x + bias), arXiv 1702.03118, in x's dtype: one kernel each way eagerly on a GPU, and x is what is saved.

    There arithmetic is float32, rounded once. Float64, and what a compiler, a mode or a transform of torch has to see,
    is left to torch's own operations. Backwards are bit-equal between runs.

    Args:
        x: (..., channels).
        bias: (channels,), or None for the activation alone, by torch.

    Raises:
        ValueError: a bias of another shape.
        TypeError: a bias of whole or complex numbers.

    >>> bias_silu(torch.zeros(2, 3), torch.zeros(3)).tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    return F.silu(x) if bias is None else _activated(F.silu, x, bias)


def bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """GELU(x + bias), exact, arXiv 1606.08415; else as `bias_silu`.

    >>> bias_gelu(torch.zeros(1, 2), torch.tensor([0.0, 10.0])).tolist()
    [[0.0, 10.0]]
    """
    return F.gelu(x) if bias is None else _activated(F.gelu, x, bias)


def bias_relu(x: Tensor, bias: Tensor | None) -> Tensor:
    """max(x + bias, 0); else as `bias_silu`, but for gradients, which are left to torch: of a ReLU it saves what it
    returns, as the layer behind it does, and that takes no more memory.

    >>> bias_relu(torch.zeros(1, 2), torch.tensor([-1.0, 1.0])).tolist()
    [[0.0, 1.0]]
    """
    return F.relu(x) if bias is None else _activated(F.relu, x, bias)


def gelu_again(x: Tensor, bias: Tensor | None, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """For a backward that has not saved what `bias_gelu` returned: this, and the gradients of x and bias given its own.

    Args:
        x, bias: as for `bias_gelu`.
        gradient: of x's shape.

    >>> value, dx, dbias = gelu_again(torch.zeros(2, 1), torch.zeros(1), torch.ones(2, 1))
    >>> value.tolist(), dx.tolist(), dbias.tolist()
    ([[0.0], [0.0]], [[0.5], [0.5]], [1.0])
    """
    run = _backward_of(F.gelu, x, bias, gradient, again=True)
    if run is not None:
        return run(x, bias, gradient)
    given = x if bias is None else _biased(x, bias)
    dx = torch.ops.aten.gelu_backward(gradient.to(x.dtype), given)
    return F.gelu(given), dx, None if bias is None else dx.flatten(0, -2).sum(0).to(bias.dtype)


_Activation = Callable[[Tensor], Tensor]  # F.silu, F.gelu or F.relu
_Forward = Callable[[Tensor, Tensor], Tensor]
_Backward = Callable[[Tensor, Tensor | None, Tensor], tuple[Tensor | None, Tensor, Tensor | None]]


def _biased(x: Tensor, bias: Tensor) -> Tensor:
    if not bias.is_floating_point():
        raise TypeError(f"bias is {bias.dtype}; expected a floating-point tensor")
    if bias.shape != x.shape[-1:]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; expected {tuple(x.shape[-1:])}, the channels of x")
    return (x + bias).to(x.dtype)


def _activated(function: _Activation, x: Tensor, bias: Tensor) -> Tensor:
    run, trained = None, needs_gradient((x, bias))
    if x.is_cuda and runs_eagerly() and not (trained and function is F.relu):
        kind = kind_of((function, x, bias))
        if kind is not None:
            try:
                run = _forwards[kind]
            except KeyError:
                run = _forwards[kind] = _plan_forward(function, x, bias) if _in_one_kernel(x, bias) else None
    if run is None:
        return function(_biased(x, bias))
    if trained:
        return _Activated.apply(function, run, x, bias)
    return run(x, bias)


class _Activated(torch.autograd.Function):
    """The activation of x + bias in one kernel each way; it saves x, and not the sum."""

    @staticmethod
    def forward(ctx, function, run, x, bias):
        ctx.function = function
        ctx.save_for_backward(x, bias)
        return run(x, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, bias = ctx.saved_tensors
        run = None
        if not torch.is_grad_enabled() and torch._C._has_storage(gradient):
            run = _backward_of(ctx.function, x, bias, gradient, again=False)
        if run is not None:
            return None, None, *run(x, bias, gradient)[1:]
        # Of views: x may be made of the bias, or of what that is made of, and this is not to be followed.
        with torch.enable_grad():  # second derivatives, many gradients at once
            x, bias = x.view_as(x), bias.view_as(bias)
            value = ctx.function(_biased(x, bias))
        wanted = [tensor for tensor in (x, bias) if tensor.requires_grad]
        found = iter(torch.autograd.grad(value, wanted, gradient, create_graph=torch.is_grad_enabled()))
        return None, None, *(next(found) if tensor.requires_grad else None for tensor in (x, bias))


# By kinds of their arguments; None where torch runs them.
_forwards: dict[Hashable, _Forward | None] = Latest()
_backwards: dict[Hashable, _Backward | None] = Latest()


def _backward_of(
    function: _Activation, x: Tensor, bias: Tensor | None, gradient: Tensor, again: bool
) -> _Backward | None:
    """(x, bias, gradient) to the value (with `again`) and both gradients; None where torch computes them."""
    if not (x.is_cuda and runs_eagerly()):
        return None
    kind = kind_of((function, again, x, bias, gradient))
    if kind is None:
        return None
    try:
        return _backwards[kind]
    except KeyError:
        possible = _in_one_kernel(x, bias, gradient)
        run = _backwards[kind] = _plan_backward(function, x, bias, gradient, again) if possible else None
        return run


def _plan_forward(function: _Activation, x: Tensor, bias: Tensor) -> _Forward:
    tiles, blocks, told = tiles_of(x, len(bias))
    launch = Launcher(forward_kernel, (tiles * blocks,), **told_of(function), **told)

    def run(x: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous()
        value = torch.empty_like(x)
        launch(x, bias, value)
        return value

    return run


def told_of(function: _Activation) -> dict[str, bool]:
    """What kernels are told about the activation that they compute."""
    return {"RELU": function is F.relu, "GELU": function is F.gelu}


def _plan_backward(function: _Activation, x: Tensor, bias: Tensor | None, gradient: Tensor, again: bool) -> _Backward:
    tiles, blocks, told = tiles_of(x, _TILE["COLUMNS"] if bias is None else len(bias))
    told |= {"GELU": function is F.gelu, "STAGES": _STAGES}
    turns = 1 if bias is None else cdiv(tiles, max(1, _PROGRAMS_MAX // blocks))
    programs = cdiv(tiles, turns)
    launch = Launcher(backward_kernel, (programs * blocks,), turns=turns, **told)
    if bias is not None:
        rows, channels = programs * blocks * _TILE["COLUMNS"] // len(bias), len(bias)
        sum_shares = shares_launcher(rows, channels, channels)

    def run(x: Tensor, bias: Tensor | None, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, gradient = x.contiguous(), gradient.contiguous()
        dx, value = torch.empty_like(x), torch.empty_like(x) if again else None
        if bias is None:
            launch(x, None, gradient, dx, value, None)
            return value, dx, None
        shares = torch.empty((rows, channels), dtype=torch.float32, device=x.device)
        dbias = torch.empty_like(bias)
        launch(x, bias, gradient, dx, value, shares)
        sum_shares(shares, dbias, None, None)
        return value, dx, dbias

    return run


def _in_one_kernel(x: Tensor, bias: Tensor | None, *others: Tensor) -> bool:
    readable = bias is None or (bias.shape == x.shape[-1:] and bias.is_contiguous() and bias.is_floating_point())
    return readable and x.numel() > 0 and why_no_triton(x, bias, *others) is None


def tiles_of(x: Tensor, channels: int) -> tuple[int, int, dict[str, Any]]:
    """Tiles along the rows, blocks of columns, and what kernels of (..., channels) are told.

    So many rows of x are taken for one that blocks fill its length, whatever the number of channels is.
    """
    width = math.lcm(channels, _TILE["COLUMNS"])
    tiles, blocks = cdiv(x.numel(), width * _TILE["ROWS"]), width // _TILE["COLUMNS"]
    return tiles, blocks, {"size": x.numel(), "CHANNELS": channels, "BLOCKS": blocks, **_TILE}


if triton is not None:

    @triton.jit
    def columns_of_program(bias, CHANNELS: tl.constexpr, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr):
        """Of this program: its columns, and their biases."""
        column = tl.program_id(0) % BLOCKS * COLUMNS + tl.arange(0, COLUMNS)
        shift = tl.zeros((COLUMNS,), tl.float32)
        if bias is not None:
            shift = tl.load(bias + column % CHANNELS).to(tl.float32)
        return column[None, :], shift[None, :]

    @triton.jit
    def places(tile, column, size, BLOCKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
        """Of a tile of rows: where its numbers lie, and which of them exist."""
        row = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
        place = row[:, None] * (BLOCKS * COLUMNS) + column
        return place, place < size

    @triton.jit
    def share(x, GELU: tl.constexpr):
        """What an activation multiplies x by: of GELU the normal distribution at x, of SiLU the logistic one."""
        if GELU:
            found = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        else:
            found = sigmoid(x)
        return found

    @triton.jit
    def activated(x, RELU: tl.constexpr, GELU: tl.constexpr):
        """ReLU, GELU, or with neither SiLU."""
        if RELU:
            found = tl.where(x < 0.0, 0.0, x)  # NaN stays
        else:
            found = x * share(x, GELU)
        return found

    @triton.jit
    def forward_kernel(
        x, bias, value, size, RELU: tl.constexpr, GELU: tl.constexpr,
        CHANNELS: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        column, shift = columns_of_program(bias, CHANNELS, BLOCKS, COLUMNS)
        place, mask = places(tl.program_id(0) // BLOCKS, column, size, BLOCKS, ROWS, COLUMNS)
        given = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) + shift
        tl.store(value + place, activated(given, RELU, GELU).to(value.dtype.element_ty), mask=mask)

    @triton.jit
    def backward_kernel(
        x, bias, gradient, dx, value, shares, size, turns,
        CHANNELS: tl.constexpr, BLOCKS: tl.constexpr, GELU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
        STAGES: tl.constexpr,
    ):  # fmt: skip
        """dx, and this program's share of the gradient of bias; and the value once more."""
        column, shift = columns_of_program(bias, CHANNELS, BLOCKS, COLUMNS)
        program = tl.program_id(0) // BLOCKS
        dbias = tl.zeros((ROWS, COLUMNS), tl.float32)
        for turn in tl.range(0, turns, num_stages=STAGES):
            tile = turn * (tl.num_programs(0) // BLOCKS) + program
            place, mask = places(tile, column, size, BLOCKS, ROWS, COLUMNS)
            given = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) + shift
            slope = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32)
            factor = share(given, GELU)
            if value is not None:
                tl.store(value + place, (given * factor).to(value.dtype.element_ty), mask=mask)
            if GELU:
                slope *= factor + given * (0.3989422804014327 * tl.exp(-0.5 * given * given))
            else:
                slope *= factor * (1.0 + given * (1.0 - factor))
            tl.store(dx + place, slope.to(dx.dtype.element_ty), mask=mask)
            dbias += slope
        if shares is not None:
            tl.store(shares + program * (BLOCKS * COLUMNS) + column, tl.sum(dbias, 0)[None, :])
