"""The selective scan along any scan order: the public function and its registration with torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vssm_kernels.directed_linear import directed_linear, directed_linear_backward
from vssm_kernels.dispatch import Backend, needs_gradient, operator, register
from vssm_kernels.selective_scan import chunked, native_cpu, reference, triton_fused
from vssm_kernels.selective_scan.arguments import ScanArguments, check_low_rank, check_shapes
from vssm_kernels.sum_gate import sum_gate

_registry = register("selective_scan", [native_cpu.BACKEND, triton_fused.BACKEND, chunked.BACKEND, reference.BACKEND])


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor | None,
    D: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_weight: Tensor | None = None,
    z: Tensor | None = None,
    order: Tensor | None = None,
    segment: int | None = None,
    merge: bool = False,
) -> Tensor:
    """Selective state-space recurrence of every direction along its scan order (Mamba, arXiv 2312.00752).

    At step l, direction k visits token t = order[k, l], with step size delta' = softplus(delta[t] + delta_bias):

        h = exp(delta' A) h + delta' B[t] u[t];    y[t] = C[t] h + D u[t]

    Tokens stay in raster order in memory, channels last; only the walk differs. Arithmetic and state are float32
    (float64 for float64 inputs) whatever the activations are.

    Args:
        u: (batch, tokens, channels), read by all directions, or (batch, tokens, directions, channels).
        delta: (batch, tokens, directions, channels), step size before bias and softplus; or with `delta_weight`
            (batch, tokens, directions, rank).
        A: (directions, channels, state), decay rates, negative.
        B: (batch, tokens, directions, state).
        C: (batch, tokens, directions, state), or None to return the states themselves.
        D: (directions, channels), skip connection; needs C.
        delta_bias: (directions, channels), added to delta.
        delta_weight: (directions, channels, rank): the step size is this times delta. Made here, it is not kept for
            the backward, which makes it again: it is the largest tensor of a block, and the cheapest to make.
        z: (batch, tokens, channels), gate: the merged output times silu(z). Needs merge and C.
        order: (directions, steps), int32, the token visited at each step; -1 is an empty step, which reads zeros and
            writes nothing while the state still decays. None is raster order for every direction. A token visited
            twice by one direction receives the sum, one never visited zero. Checked when first used; treat a table
            as constant afterwards.
        segment: the state starts anew every `segment` steps; None never.
        merge: return the sum over the directions.

    Returns:
        (batch, tokens, directions, channels) in u's dtype; states have a last dimension `state`; with merge the
        directions are summed, in float32, and gone.

    Raises:
        ValueError: shapes that do not fit, or an order that leaves the tokens.
        TypeError: integers where floats belong, or an order that is not int32.

    >>> import torch
    >>> u, delta = torch.randn(2, 6, 4), torch.randn(2, 6, 2, 4)
    >>> A, B, C = -torch.rand(2, 4, 3), torch.randn(2, 6, 2, 3), torch.randn(2, 6, 2, 3)
    >>> both_ways = torch.stack([torch.arange(6), torch.arange(6).flip(0)]).int()
    >>> selective_scan(u, delta, A, B, C, order=both_ways, merge=True).shape
    torch.Size([2, 6, 4])
    """
    if delta_weight is not None:
        check_low_rank(delta, delta_weight)
    outline = delta if delta_weight is None else _outline(delta, delta_weight)
    args = ScanArguments(u, outline, A, B, C, D, delta_bias, order, 0 if segment is None else segment)
    if segment == 0:
        raise ValueError("segment is 0; expected a number of steps of at least 1, or None to never reset the state")
    check_shapes(args, z, merge)
    tensors = (u, delta, A, B, C, D, delta_bias, delta_weight)
    y, _ = _scan(*tensors, order, args.segment, needs_gradient(*tensors))
    if not merge:
        return y
    if z is None and y.shape[2] == 1:
        return y.squeeze(2)
    return sum_gate(y, z) if C is not None else sum_gate(y.flatten(3), None).unflatten(2, y.shape[3:])


@operator("vssm::selective_scan")
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    order: Tensor | None,
    segment: int,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """The output, and what the backend keeps for the backward if that is to follow: numbers, or none."""
    args = ScanArguments(u, _steps(delta, delta_weight), A, B, C, D, delta_bias, order, segment)
    backend = _registry.choose(args)
    kept = _room(backend, args, save)
    return backend.forward(args, *_filled(kept)), kept


@torch.library.register_fake("vssm::selective_scan")
def _(u, delta, A, B, C, D, delta_bias, delta_weight, order, segment, save):
    outline = delta if delta_weight is None else _outline(delta, delta_weight)
    args = ScanArguments(u, outline, A, B, C, D, delta_bias, order, segment)
    return u.new_empty(args.output_shape), _room(_registry.choose(args), args, save)


@operator("vssm::selective_scan_backward")
def _scan_backward(
    gradient: Tensor,
    kept: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    order: Tensor | None,
    segment: int,
) -> list[Tensor]:
    """`gradient` is of the output, or where all directions have the same, of one."""
    weight = None if delta_weight is None else delta_weight.to(delta.dtype)
    args = ScanArguments(u, _steps(delta, weight), A, B, C, D, delta_bias, order, segment)
    backend = _registry.choose(args)
    if kept.numel() != backend.keeps(args):  # another one's
        kept = kept.new_empty(0)
    du, dstep, *others = backend.backward(args, gradient.expand(args.output_shape), *_filled(kept))
    if weight is None:
        return _present([du, dstep, *others])
    ddelta, dweight = directed_linear_backward(dstep, delta, weight)
    return _present([du, ddelta.contiguous(), *others, dweight.to(delta_weight.dtype).contiguous()])


@torch.library.register_fake("vssm::selective_scan_backward")
def _(gradient, kept, u, delta, A, B, C, D, delta_bias, delta_weight, order, segment):
    tensors = _present([u, delta, A, B, C, D, delta_bias, delta_weight])
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors]


def _room(backend: Backend, args: ScanArguments, save: bool) -> Tensor:
    return args.u.new_empty(backend.keeps(args) if save else 0, dtype=torch.float32)


def _filled(kept: Tensor) -> list[Tensor]:
    return [kept] if kept.numel() else []


def _present(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _steps(delta: Tensor, delta_weight: Tensor | None) -> Tensor:
    return delta if delta_weight is None else directed_linear(delta, delta_weight.to(delta.dtype))


def _outline(delta: Tensor, delta_weight: Tensor) -> Tensor:
    """A view with the shape, dtype and device that the product of both would have, for checks of these alone."""
    return delta[..., :1].expand(*delta.shape[:3], delta_weight.shape[1])


def _setup_context(ctx, inputs, output):
    *tensors, ctx.segment, _save = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros for what is kept


def _autograd_backward(ctx, gradient, _):
    if gradient is None:  # of an output that nothing depends on
        return (None,) * 11
    saved = ctx.saved_tensors  # once: under activation checkpointing a second look would recompute
    if gradient.stride(2) == 0:  # directions that are summed share one gradient, which compilers would write for each
        gradient = gradient[:, :, :1]
    gradients = iter(_scan_backward(gradient, *saved, ctx.segment))
    _kept, *tensors, _order = saved
    return (*(None if tensor is None else next(gradients) for tensor in tensors), None, None, None)


torch.library.register_autograd("vssm::selective_scan", _autograd_backward, setup_context=_setup_context)
