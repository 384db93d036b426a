"""Parameters as kernels and matrix products read them: those of a whole layer in one kernel.

What depends on parameters alone is made anew at every call, so that it is never stale, whoever changed them and how:
an optimiser, `load_state_dict`, an average of weights, or memory written behind autograd's back. On a GPU one kernel
makes all of it, and one kernel takes the gradients back; operation by operation that is some twenty kernels a layer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vssm_kernels.directed_linear import side_by_side
from vssm_kernels.dispatch import is_plain, runs_eagerly
from vssm_kernels.gpu import Launcher, cdiv, why_no_triton
from vssm_kernels.kinds import Latest, kind_of
from vssm_kernels.saturation import wide

try:
    import triton
    import triton.language as tl
except ImportError:  # why_no_triton reports it
    triton = None

_BLOCK = 1024  # numbers of a program
_ALIGN = 16  # what is made begins at multiples of so many numbers
_NARROW = (torch.float32, torch.bfloat16, torch.float16)
_MOST = 12  # parameters of one kernel


class Layout(IntEnum):
    CAST = 0
    STACKED = 1
    SIDE_BY_SIDE = 2
    RATES = 3


class Form(NamedTuple):
    """How a parameter is read.

    - CAST: in the dtype of the products.
    - STACKED: (directions, rows, columns) as (directions * rows, columns), the weight of a product whose input all
      directions share. The first `last` rows of every direction come last.
    - SIDE_BY_SIDE: the same as (directions * rows, directions * columns), where each has its own input: see
      `side_by_side`.
    - RATES: (directions, channels, state) logarithms a as the decay rates -exp(a), in float32 at least.
    """

    layout: Layout = Layout.CAST
    last: int = 0


CAST, RATES = Form(), Form(Layout.RATES)


def read_parameters(
    parameters: Sequence[Tensor | None], forms: Sequence[Form], dtype: torch.dtype
) -> tuple[Tensor | None, ...]:
    """The parameters in the forms in which kernels and matrix products read them.

    Args:
        parameters: of any shapes that their forms take; None stays None.
        forms: one for each.
        dtype: of the matrix products.

    >>> import torch
    >>> log_rates, weight = torch.zeros(2, 3, 4), torch.ones(2, 5, 3)
    >>> rates, stacked = read_parameters([log_rates, weight], [RATES, Form(Layout.STACKED)], torch.bfloat16)
    >>> rates[0, 0, 0], stacked.shape, stacked.dtype
    (tensor(-1.), torch.Size([10, 3]), torch.bfloat16)
    """
    parts = None
    if parameters[0] is not None and parameters[0].is_cuda and runs_eagerly():
        kind = kind_of(parameters), tuple(forms), dtype, torch.is_grad_enabled()
        parts = _parts.get(kind)
        if parts is None and _in_one_kernel(parameters):
            parts = _parts[kind] = _plan(parameters, forms, dtype)
    if parts is None:
        return tuple([_read(parameter, form, dtype) for parameter, form in zip(parameters, forms, strict=True)])
    found = list(parameters)
    for places, read in parts:
        for i, tensor in zip(places, read(*[parameters[i] for i in places]), strict=True):
            found[i] = tensor
    return tuple(found)


# By kinds of parameters: which are read in one kernel, and how.
_parts: dict[Hashable, list[tuple[list[int], Callable[..., tuple[Tensor, ...]]]]] = Latest()


def _plan(
    parameters: Sequence[Tensor | None], forms: Sequence[Form], dtype: torch.dtype
) -> list[tuple[list[int], Callable[..., tuple[Tensor, ...]]]]:
    which = [
        i
        for i, (parameter, form) in enumerate(zip(parameters, forms, strict=True))
        # A parameter that is read as it is needs no kernel.
        if parameter is not None and (form.layout != Layout.CAST or parameter.dtype != dtype)
    ]
    learned = [i for i in which if torch.is_grad_enabled() and parameters[i].requires_grad]
    parts = []
    # Of frozen parameters no gradient is computed.
    for group, read in ((learned, _Together.apply), ([i for i in which if i not in learned], _read_together)):
        for part in (group[start : start + _MOST] for start in range(0, len(group), _MOST)):
            part_forms, shapes = tuple([forms[i] for i in part]), tuple([parameters[i].shape for i in part])
            plan = _Plan.of(shapes, part_forms, dtype, parameters[part[0]].device)
            parts.append((part, partial(read, plan, _launcher_of(read_kernel, plan))))
    return parts


def _in_one_kernel(parameters: Sequence[Tensor | None]) -> bool:
    dtype, device = parameters[0].dtype, parameters[0].device
    for tensor in parameters:
        if tensor is not None and (
            not is_plain(tensor) or tensor.dtype != dtype or tensor.device != device or not tensor.is_contiguous()
        ):
            return False
    return dtype in _NARROW and why_no_triton(parameters[0]) is None


def _read(parameter: Tensor | None, form: Form, dtype: torch.dtype) -> Tensor | None:
    """In plain torch, one parameter by itself."""
    if parameter is None:
        return None
    match form.layout:
        case Layout.CAST:
            return parameter.to(dtype)
        case Layout.RATES:
            return -torch.exp(wide(parameter))
    stack = side_by_side if form.layout == Layout.SIDE_BY_SIDE else _stacked
    if form.last == 0:
        return stack(parameter).to(dtype)
    last, first = parameter.split([form.last, parameter.shape[1] - form.last], dim=1)
    return torch.cat([stack(first), stack(last)]).to(dtype)


def _stacked(weight: Tensor) -> Tensor:
    return weight.flatten(0, 1)


class _Plan(NamedTuple):
    """What is made of parameters of some shapes, and where it lies in two buffers, of the products' dtype and float32.

    `table` has for each what the kernels take: layout, numbers of the parameter and of what is made of it, where this
    begins and where its gradient does, directions, rows, columns, `last`.
    """

    forms: tuple[Form, ...]
    dtype: torch.dtype
    outputs: tuple[tuple[bool, tuple[int, ...], tuple[int, ...]], ...]  # whether wide, shape, strides
    gradients: tuple[torch.Size, ...]  # shapes
    cuts: tuple[list[int], list[int], list[int]]  # lengths of the parts of the two buffers and of the gradients'
    table: Tensor
    grid: tuple[int, int]  # blocks of the largest parameter, in either direction, and parameters

    @staticmethod
    @functools.cache  # for good: CUDA graphs read the tables of plans
    def of(shapes: tuple[torch.Size, ...], forms: tuple[Form, ...], dtype: torch.dtype, device: torch.device) -> _Plan:
        begin, cuts, outputs, fields, largest = [0, 0, 0], ([], [], []), [], [], 0
        for shape, form in zip(shapes, forms, strict=True):
            wide = form.layout == Layout.RATES
            if form.layout == Layout.CAST:
                directions, rows, columns = 1, 1, math.prod(shape)
                made, strides = tuple(shape), _row_major(shape)
                size = columns
            else:
                directions, rows, columns = shape
                if wide:  # channels run fastest, in rows of an even length, as kernels read them
                    pitch = rows + rows % 2
                    made, strides, size = tuple(shape), (columns * pitch, 1, pitch), directions * columns * pitch
                else:
                    width = columns * directions if form.layout == Layout.SIDE_BY_SIDE else columns
                    made, strides, size = (directions * rows, width), (width, 1), directions * rows * width
            outputs.append((wide, made, strides))
            numbers = math.prod(shape)
            fields.append([form.layout, numbers, size, begin[wide], begin[2], directions, rows, columns, form.last])
            for buffer, length in ((int(wide), size), (2, numbers)):
                cuts[buffer].extend([length, -length % _ALIGN])
                begin[buffer] += length + -length % _ALIGN
            largest = max(largest, size, numbers)
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("run the model once before capturing a CUDA graph: its parameters are not yet laid out")
        with torch.inference_mode(False), torch.no_grad():
            table = torch.tensor(fields, dtype=torch.int32, device="cpu").to(device)
        grid = cdiv(largest, _BLOCK), len(shapes)
        return _Plan(forms, dtype, tuple(outputs), shapes, cuts, table, grid)


def _row_major(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _read_together(plan: _Plan, launch: Launcher, *parameters: Tensor) -> tuple[Tensor, ...]:
    return _made_of(plan, launch, parameters)[1]


def _made_of(plan: _Plan, launch: Launcher, parameters: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The buffer in float32, and what is made of each parameter."""
    device, (narrow_cuts, wide_cuts, _) = parameters[0].device, plan.cuts
    narrow = torch.empty(sum(narrow_cuts), dtype=plan.dtype, device=device)
    wide = torch.empty(sum(wide_cuts), dtype=torch.float32, device=device)
    launch(*_filled(parameters), plan.table, narrow, wide)
    parts = _parts_of(narrow, narrow_cuts), _parts_of(wide, wide_cuts)
    # Rates are a view with other strides than their part's.
    made = [
        next(parts[1]).as_strided(shape, strides) if is_wide else next(parts[0]).view(shape)
        for is_wide, shape, strides in plan.outputs
    ]
    return wide, tuple(made)


def _parts_of(buffer: Tensor, cuts: list[int]) -> Iterator[Tensor]:
    """The parts of a buffer without what fills the gaps between them; one operation, where slices are one each."""
    return iter(buffer.split_with_sizes(cuts)[::2])


def _filled(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Pointers that are left over are those of the first tensor; no program follows them."""
    return [*tensors, *[tensors[0]] * (_MOST - len(tensors))]


def _launcher_of(kernel: Any, plan: _Plan) -> Launcher:
    return Launcher(kernel, plan.grid, COUNT=plan.grid[1], BLOCK=_BLOCK)


# By the gradients' dtypes and alignments.
_gradient_launchers: dict[Hashable, Launcher] = Latest()


class _Together(torch.autograd.Function):
    """`read_parameters` of a plan, in one kernel each way."""

    @staticmethod
    def forward(ctx, plan, launch, *parameters):
        wide, made = _made_of(plan, launch, parameters)
        ctx.plan = plan
        ctx.save_for_backward(wide, *parameters)
        return made

    @staticmethod
    def backward(ctx, *gradients):
        wide, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled() or not all(map(torch._C._has_storage, gradients)):
            found = map(_gradient, parameters, ctx.plan.forms, gradients)
        else:
            found = _gradients(ctx.plan, parameters[0], wide, gradients)
        return None, None, *found


def _gradient(parameter: Tensor, form: Form, gradient: Tensor) -> Tensor:
    """Of one parameter in plain torch, for second derivatives and for many gradients at once."""
    match form.layout:
        case Layout.CAST:
            return gradient.to(parameter.dtype)
        case Layout.RATES:
            return (gradient * -torch.exp(parameter.to(gradient.dtype))).to(parameter.dtype)
    directions, rows, columns = parameter.shape
    parts = gradient.split([directions * (rows - form.last), directions * form.last])
    parts = [part.unflatten(0, (directions, -1)) for part in parts]
    if form.layout == Layout.SIDE_BY_SIDE:
        parts = [part.unflatten(2, (directions, columns)).diagonal(dim1=0, dim2=2).permute(2, 0, 1) for part in parts]
    return torch.cat(parts[::-1], dim=1).to(parameter.dtype)


def _gradients(plan: _Plan, parameter: Tensor, wide: Tensor, gradients: Sequence[Tensor]) -> list[Tensor]:
    laid_out = []
    for gradient, (_, shape, strides) in zip(gradients, plan.outputs, strict=True):
        if gradient.stride() != strides:
            gradient = torch.empty_strided(
                shape, strides, dtype=gradient.dtype, device=gradient.device
            ).copy_(gradient)  # fmt: skip
        laid_out.append(gradient)
    cuts = plan.cuts[2]
    out = torch.empty(sum(cuts), dtype=parameter.dtype, device=parameter.device)
    kind = (plan.grid, out.dtype, out.device, *[(tensor.dtype, tensor.data_ptr() & 15) for tensor in laid_out])
    launch = _gradient_launchers.get(kind)
    if launch is None:
        launch = _gradient_launchers[kind] = _launcher_of(gradient_kernel, plan)
    launch(*_filled(laid_out), plan.table, out, wide)
    return [part.view(shape) for part, shape in zip(_parts_of(out, cuts), plan.gradients, strict=True)]


if triton is not None:
    _FIELDS = tl.constexpr(9)  # of a row of the table

    @triton.jit
    def field(table, i: tl.constexpr):
        return tl.load(table + tl.program_id(1) * _FIELDS + i)

    @triton.jit
    def place_in_parameter(i, table):
        """Where number i of what is made of a parameter is read in it, and whether it is anywhere."""
        layout, directions, rows = field(table, 0), field(table, 5), field(table, 6)
        columns, last = field(table, 7), field(table, 8)
        if layout == 0:
            place, exists = i, i >= 0
        elif layout == 3:  # (directions, state, channels), in rows of an even length
            pitch = rows + rows % 2
            k, n, c = i // (pitch * columns), i // pitch % columns, i % pitch
            place, exists = (k * rows + c) * columns + n, c < rows
        else:
            width = tl.where(layout == 2, directions * columns, columns)
            row, column = i // width, i % width
            first = rows - last
            later = row - directions * first
            per = tl.where(later < 0, first, tl.maximum(last, 1))
            at = tl.where(later < 0, row, later)
            k = at // per
            r = at % per + tl.where(later < 0, last, 0)
            column -= tl.where(layout == 2, k * columns, 0)
            place, exists = (k * rows + r) * columns + column, (column >= 0) & (column < columns)
        return place, exists

    @triton.jit
    def place_of_parameter(i, table):
        """Where number i of a parameter stands in what is made of it."""
        layout, directions, rows = field(table, 0), field(table, 5), field(table, 6)
        columns, last = field(table, 7), field(table, 8)
        k, r, column = i // (rows * columns), i // columns % rows, i % columns
        if layout == 0:
            place = i
        elif layout == 3:
            pitch = rows + rows % 2
            place = (k * columns + column) * pitch + r
        else:
            width = tl.where(layout == 2, directions * columns, columns)
            row = tl.where(r >= last, k * (rows - last) + r - last, directions * (rows - last) + k * last + r)
            place = row * width + column + tl.where(layout == 2, k * columns, 0)
        return place

    @triton.jit
    def read_kernel(
        p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, p10, p11, table, narrow, wide, COUNT: tl.constexpr, BLOCK: tl.constexpr
    ):  # fmt: skip
        """Program (block, parameter) makes BLOCK numbers of what is made of a parameter."""
        parameters = (p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, p10, p11)
        first = tl.program_id(0) * BLOCK
        size = field(table, 2)
        if first < size:
            i = first + tl.arange(0, BLOCK)
            place, exists = place_in_parameter(i, table)
            inside = i < size
            out = field(table, 3) + i
            for which in tl.static_range(COUNT):
                if tl.program_id(1) == which:
                    value = tl.load(parameters[which] + place, mask=inside & exists, other=0.0).to(tl.float32)
                    if field(table, 0) == 3:
                        tl.store(wide + out, -tl.exp(value), mask=inside)
                    else:
                        tl.store(narrow + out, value.to(narrow.dtype.element_ty), mask=inside)

    @triton.jit
    def gradient_kernel(
        g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10, g11, table, out, wide, COUNT: tl.constexpr, BLOCK: tl.constexpr
    ):  # fmt: skip
        """Program (block, parameter) makes BLOCK numbers of a parameter's gradient."""
        gradients = (g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10, g11)
        first = tl.program_id(0) * BLOCK
        size = field(table, 1)
        if first < size:
            i = first + tl.arange(0, BLOCK)
            inside = i < size
            place = place_of_parameter(i, table)
            for which in tl.static_range(COUNT):
                if tl.program_id(1) == which:
                    value = tl.load(gradients[which] + place, mask=inside, other=0.0).to(tl.float32)
                    if field(table, 0) == 3:  # the slope of -exp(a) is its value
                        value *= tl.load(wide + field(table, 3) + place, mask=inside, other=0.0)
                    tl.store(out + field(table, 4) + i, value.to(out.dtype.element_ty), mask=inside)
