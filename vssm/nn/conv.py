"""Convolutions of channels-last maps, and those with batch norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm.layers
import torch
import torch.nn.functional as F
from timm.layers import create_act_layer, register_notrace_module
from torch import Tensor, nn

from vssm.nn.linear import WEIGHT_AND_BIAS
from vssm.nn.reading import ReadsParameters, has_hooks, product_and_bias, runs_eagerly_on_gpu
from vssm.ops import Form, batch_norm, bias_silu


@register_notrace_module
class ChannelsLastConv2d(nn.Conv2d, ReadsParameters):
    """nn.Conv2d from (batch, height, width, channels) to (batch, height', width', channels').

    The permutations are views: torch's channels_last memory format is this layout, so nothing is copied. It shares the
    cast of its parameters under autocast with the other layers of its block.

    >>> import torch
    >>> ChannelsLastConv2d(4, 6, kernel_size=3, stride=2, padding=1)(torch.randn(1, 9, 7, 4)).shape
    torch.Size([1, 5, 4, 6])
    """

    def to_read(self, on_gpu: bool) -> dict[str, Form]:
        return WEIGHT_AND_BIAS

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, *self.read(x))

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x.permute(0, 3, 1, 2), weight, bias).permute(0, 2, 3, 1)


def convolved_silu(conv: nn.Module, x: Tensor) -> Tensor:
    """SiLU(conv(x)), of a map (batch, height, width, channels).

    >>> import torch
    >>> convolved_silu(ChannelsLastConv2d(4, 6, kernel_size=3), torch.randn(1, 9, 7, 4)).shape
    torch.Size([1, 7, 5, 6])
    """
    return bias_silu(*product_and_bias(conv, x))


class ConvNormAct(timm.layers.ConvNormAct):
    """timm's, of (batch, channels, height, width), with the activation beside the batch norm, not within it.

    What takes a batch norm's place, such as torch's and mmengine's SyncBatchNorm, would leave one within it out. In
    inference on a GPU one kernel computes both.

    Args:
        *args: of timm's, as the rest is.
        act_layer: class of the activation.
        apply_act: whether there is one.

    >>> import torch
    >>> ConvNormAct(4, 6, kernel_size=3, stride=2)(torch.randn(1, 4, 9, 7)).shape
    torch.Size([1, 6, 5, 4])
    """

    def __init__(self, *args: Any, act_layer: type[nn.Module] = nn.ReLU, apply_act: bool = True, **named: Any):
        super().__init__(*args, apply_act=False, **named)
        self.act = create_act_layer(act_layer, inplace=True) if apply_act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if not self._norms_in_one_kernel(x):
            return self.act(super().forward(x))
        norm, function = self.bn, _function_of(self.act)
        rows = self.conv(x).permute(0, 2, 3, 1)
        statistics = norm.running_mean, norm.running_var, norm.weight, norm.bias
        y = batch_norm(rows, *statistics, norm.eps, function).permute(0, 3, 1, 2)
        return y if function is not None else self.act(y)

    def _norms_in_one_kernel(self, x: Tensor) -> bool:
        """Whether one kernel can norm, by running statistics, and activate: without gradients and without hooks."""
        norm = self.bn
        return (
            runs_eagerly_on_gpu(x)
            and not torch.is_grad_enabled()
            and type(norm) is timm.layers.BatchNormAct2d
            and not norm.training
            and norm.running_var is not None
            and type(norm.drop) is type(norm.act) is nn.Identity
            and self.aa is None
            and not any(map(has_hooks, (norm, norm.drop, norm.act, self.act)))
        )


def _function_of(activation: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The function of torch that a module is, of those that `batch_norm` takes; None for another."""
    if type(activation) is nn.GELU:
        return F.gelu if activation.approximate == "none" else None
    return {nn.ReLU: F.relu, nn.SiLU: F.silu}.get(type(activation))
