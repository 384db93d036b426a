"""One matrix product per direction: each has its own rows and weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def directed_linear(rows: Tensor, weight: Tensor) -> Tensor:
    """(batch, tokens, directions, inputs) times (directions, outputs, inputs) -> (batch, tokens, directions, outputs).

    The weights may be `side_by_side` already, as a GPU multiplies by them.

    >>> import torch
    >>> directed_linear(torch.ones(1, 5, 2, 3), torch.ones(2, 4, 3)).shape
    torch.Size([1, 5, 2, 4])
    """
    if weight.dim() == 2 or rows.is_cuda:
        joined = weight if weight.dim() == 2 else side_by_side(weight)
        return F.linear(rows.flatten(2), joined).view(*rows.shape[:3], len(joined) // rows.shape[2])
    products = rows.flatten(0, 1).transpose(0, 1) @ weight.transpose(1, 2)  # (directions, batch * tokens, outputs)
    return products.transpose(0, 1).unflatten(0, rows.shape[:2])


def directed_linear_backward(gradient: Tensor, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of rows and of weight, given that of `directed_linear`."""
    if weight.dim() == 2 or rows.is_cuda:
        joined = weight if weight.dim() == 2 else side_by_side(weight)
        directions, gradient, rows = rows.shape[2], gradient.flatten(2), rows.flatten(2)
        drows = (gradient @ joined).unflatten(-1, (directions, -1))
        dweight = gradient.flatten(0, 1).T @ rows.flatten(0, 1)  # of every pair of directions
        if weight.dim() == 3:
            pairs = dweight.view(directions, -1, directions, weight.shape[2])
            dweight = pairs.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        return drows, dweight
    # (directions, batch * tokens, outputs); reshape and not flatten, which torch cannot vectorize over many gradients.
    columns = gradient.reshape(-1, *gradient.shape[2:]).transpose(0, 1)
    drows = (columns @ weight).transpose(0, 1).reshape(rows.shape)
    return drows, columns.transpose(1, 2) @ rows.flatten(0, 1).transpose(0, 1)


def side_by_side(weight: Tensor) -> Tensor:
    """(directions, outputs, inputs) -> block-diagonal (directions * outputs, directions * inputs).

    One product then serves all directions. A single direction's rows are too short to use a GPU's tensor cores well,
    which costs more than multiplying by zeros.
    """
    # Faster than torch.block_diag, which copies block by block, forward and backward.
    return torch.diag_embed(weight.permute(1, 2, 0), dim1=0, dim2=2).flatten(0, 1).flatten(1)
