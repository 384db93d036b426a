"""The short causal convolution in front of a Mamba scan, along any scan order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor) -> Tensor:
    """Depthwise convolution over the last few tokens that each direction has visited.

    With `width` taps, direction k at step l writes to token order[k, l]

        bias[k] + sum_j weight[k, :, j] x[order[k, l - (width - 1) + j]]

    Before the first step and at empty steps (-1) there are zeros to read. A token visited twice by a direction
    receives the sum, one never visited zero, as in `selective_scan`.

    Args:
        x: (batch, tokens, channels), read by every direction.
        weight: (directions, channels, width), the last tap being the token itself.
        bias: (directions, channels), or None.
        order: (directions, steps) integers, the token visited at each step.

    Returns:
        (batch, tokens, directions, channels).

    Source: Mamba, arXiv 2312.00752; both directions of Vim, arXiv 2401.09417.

    >>> import torch
    >>> both_ways = torch.tensor([[0, 1, 2], [2, 1, 0]])
    >>> previous_token = torch.tensor([1.0, 0.0]).expand(2, 1, 2)
    >>> causal_conv1d(torch.tensor([[[1.0], [2.0], [3.0]]]), previous_token, None, both_ways)[0, :, :, 0].T
    tensor([[0., 1., 2.],
            [2., 3., 0.]])
    """
    batch, tokens, channels = x.shape
    directions, _, width = weight.shape
    steps = order.shape[1]
    if order.shape[0] != directions:
        raise ValueError(
            f"order has {order.shape[0]} directions but weight {directions}: weight is (directions, channels, width)"
        )
    # Row 0 is a token of zeros: what empty steps, and the steps before the first, read, and where they write.
    rows = F.pad(x, (0, 0, 1, 0))
    walk = F.pad(order.long() + 1, (width - 1, 0))
    walked = rows.index_select(1, walk.flatten()).view(batch, directions, width - 1 + steps, channels)
    sequences = walked.transpose(2, 3).reshape(batch, directions * channels, width - 1 + steps)
    output = F.conv1d(
        sequences,
        weight.reshape(directions * channels, 1, width),
        None if bias is None else bias.flatten(),
        groups=directions * channels,
    )
    output = output.view(batch, directions, channels, steps).transpose(2, 3)

    token = walk[:, width - 1 :]
    slot = token * directions + torch.arange(directions, device=order.device)[:, None]
    slots = output.new_zeros(batch, (1 + tokens) * directions, channels)
    slots = slots.index_add(1, slot.flatten(), output.reshape(batch, directions * steps, channels))
    return slots.view(batch, 1 + tokens, directions, channels)[:, 1:]
