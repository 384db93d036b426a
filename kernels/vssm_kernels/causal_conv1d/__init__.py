"""The short causal convolution in front of a Mamba scan, along any scan order: public function and registration."""

from __future__ import annotations

import torch
from torch import Tensor

from vssm_kernels.causal_conv1d import native_cpu, reference, triton_fused
from vssm_kernels.causal_conv1d.arguments import ConvArguments, check_shapes
from vssm_kernels.dispatch import operator, register

_registry = register("causal_conv1d", [native_cpu.BACKEND, triton_fused.BACKEND, reference.BACKEND])


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor, *, silu: bool = False) -> Tensor:
    """Depthwise convolution over the last few tokens that each direction has visited.

    With `width` taps, direction k at step l writes to token order[k, l]

        bias[k] + sum_j weight[k, :, j] x[order[k, l - (width - 1) + j]]

    Before the first step and at empty steps (-1) there are zeros to read. A token visited twice by a direction
    receives the sum, one never visited zero, as in `selective_scan`. Sums are float32 (float64 for float64 inputs).

    Args:
        x: (batch, tokens, channels), read by every direction.
        weight: (directions, channels, width), the last tap being the token itself.
        bias: (directions, channels), or None.
        order: (directions, steps) int32, the token visited at each step; treat it as constant once used.
        silu: pass each step's output through silu before it is written.

    Returns:
        (batch, tokens, directions, channels), in x's dtype.

    Raises:
        ValueError: shapes that do not fit, or an order that leaves the tokens.
        TypeError: an order that is not int32.

    Source: Mamba, arXiv 2312.00752; both directions of Vim, arXiv 2401.09417.

    >>> import torch
    >>> both_ways = torch.tensor([[0, 1, 2], [2, 1, 0]], dtype=torch.int32)
    >>> previous_token = torch.tensor([1.0, 0.0]).expand(2, 1, 2)
    >>> causal_conv1d(torch.tensor([[[1.0], [2.0], [3.0]]]), previous_token, None, both_ways)[0, :, :, 0].T
    tensor([[0., 1., 2.],
            [2., 3., 0.]])
    """
    check_shapes(ConvArguments(x, weight, bias, order, silu))
    return _conv(x, weight, bias, order, silu)


@operator("vssm::causal_conv1d")
def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor, silu: bool) -> Tensor:
    args = ConvArguments(x, weight, bias, order, silu)
    return _registry.choose(args).forward(args)


@torch.library.register_fake("vssm::causal_conv1d")
def _(x, weight, bias, order, silu):
    return x.new_empty(ConvArguments(x, weight, bias, order, silu).output_shape)


@operator("vssm::causal_conv1d_backward")
def _conv_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor, silu: bool
) -> list[Tensor]:
    args = ConvArguments(x, weight, bias, order, silu)
    return [g for g in _registry.choose(args).backward(args, gradient) if g is not None]


@torch.library.register_fake("vssm::causal_conv1d_backward")
def _(gradient, x, weight, bias, order, silu):
    present = ConvArguments(x, weight, bias, order, silu).tensors()
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in present if t is not None]


def _setup_context(ctx, inputs, output):
    x, weight, bias, order, ctx.silu = inputs
    ctx.save_for_backward(x, weight, bias, order)


def _autograd_backward(ctx, gradient):
    x, weight, bias, order = ctx.saved_tensors
    gradients = _conv_backward(gradient, x, weight, bias, order, ctx.silu)
    return (*gradients, *[None] * (5 - len(gradients)))


torch.library.register_autograd("vssm::causal_conv1d", _autograd_backward, setup_context=_setup_context)
