"""The causal convolution along an order agrees with its definition, and with torch's own where the order is plain."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops import causal_conv1d
from vssm.scan import bidirectional, cross, insert_token

ODD = torch.tensor([[3, -1, 0, 2, -1, 3, 1], [1, 0, -1, -1, 2, 0, 0]], dtype=torch.int32)  # empty steps, repeats, gaps


def by_definition(x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor) -> Tensor:
    directions, channels, width = weight.shape
    output = x.new_zeros(x.shape[0], x.shape[1], directions, channels)
    for k in range(directions):
        for step in range(order.shape[1]):
            token = int(order[k, step])
            if token < 0:
                continue
            total = 0 if bias is None else bias[k]
            for j in range(width):
                before = step - (width - 1) + j
                if before >= 0 and order[k, before] >= 0:
                    total = total + weight[k, :, j] * x[:, int(order[k, before])]
            output[:, token, k] += total
    return output


def inputs(order: Tensor, tokens: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, tokens, 5), (order.shape[0], 5, width), (order.shape[0], 5)
    return tuple(torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)


@pytest.mark.parametrize("width", [1, 3, 4])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("order", "tokens"),
    [
        (ODD, 5),
        (cross(3, 4).table, 12),
        (insert_token(bidirectional(1, 2), 1).table, 3),
        (bidirectional(1, 1).table, 1),
    ],
)
def test_definition(order: Tensor, tokens: int, width: int, biased: bool) -> None:
    x, weight, bias = inputs(order, tokens, width)
    bias = bias if biased else None
    torch.testing.assert_close(causal_conv1d(x, weight, bias, order), by_definition(x, weight, bias, order))


def test_gradients() -> None:
    x, weight, bias = (tensor.requires_grad_() for tensor in inputs(ODD, 5, 3, torch.float64))
    assert torch.autograd.gradcheck(lambda *tensors: causal_conv1d(*tensors, ODD), (x, weight, bias))


def test_both_ways_are_torchs_convolution_of_the_flipped_sequence() -> None:
    order = bidirectional(4, 7).table
    x, weight, bias = inputs(order, 28, 4)
    sequence = x.transpose(1, 2)
    forwards = F.conv1d(F.pad(sequence, (3, 0)), weight[0][:, None], bias[0], groups=5)
    backwards = F.conv1d(F.pad(sequence.flip(-1), (3, 0)), weight[1][:, None], bias[1], groups=5).flip(-1)
    expected = torch.stack([forwards, backwards], dim=-1).permute(0, 2, 3, 1)
    torch.testing.assert_close(causal_conv1d(x, weight, bias, order), expected)


def test_wrong_directions_are_named() -> None:
    x, weight, bias = inputs(ODD, 5, 3)
    with pytest.raises(ValueError, match="order has 1 directions but weight 2"):
        causal_conv1d(x, weight, bias, ODD[:1])
