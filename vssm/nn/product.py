"""Layers that are one matrix product."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vssm.nn.conv import ChannelsLastConv2d
from vssm.nn.linear import GroupLinear, Linear
from vssm.nn.reading import has_hooks, runs_eagerly_on_gpu


def is_one_product(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer multiplies x by one matrix, as a 1 x 1 convolution of a channels-last map does too.

    >>> import torch
    >>> is_one_product(Linear(4, 3), torch.ones(2, 4)), is_one_product(nn.ReLU(), torch.ones(2, 4))
    (True, False)
    """
    if type(layer) is GroupLinear:
        return x.is_cuda
    return type(layer) is Linear or (
        type(layer) is ChannelsLastConv2d
        and (layer.kernel_size, layer.stride, layer.groups) == ((1, 1), (1, 1), 1)
        and layer.padding in ((0, 0), "valid", "same")
    )


def split_product(layer: nn.Module, x: Tensor, sizes: Sequence[int] | None = None) -> tuple[Tensor, ...]:
    """layer(x) in parts along the channels, for a convolution of one of them, which would copy a part of wider rows.

    On a GPU each part is a product of its own, unless hooks have to see the whole.

    Args:
        layer: a linear layer.
        x: (..., channels).
        sizes: outputs of each part; None for two halves.

    >>> import torch
    >>> [part.shape[1] for part in split_product(Linear(4, 6), torch.ones(2, 4), [1, 2, 3])]
    [1, 2, 3]
    """

    def parts(whole: Tensor, dim: int) -> tuple[Tensor, ...]:
        return whole.chunk(2, dim) if sizes is None else whole.split(sizes, dim)

    if not (runs_eagerly_on_gpu(x) and is_one_product(layer, x) and not has_hooks(layer)):
        return parts(layer(x), -1)
    weight, bias = layer.read(x)
    weights = parts(weight.flatten(1), 0)
    biases = [None] * len(weights) if bias is None else parts(bias, 0)
    return tuple(F.linear(x, *part) for part in zip(weights, biases, strict=True))
