"""The causal convolution in plain torch: rows along each direction, shifted, weighted, summed and written back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.causal_conv1d.arguments import ConvArguments
from vssm_kernels.dispatch import reference_backend


def conv(args: ConvArguments, save: bool = False) -> tuple[Tensor, None]:
    """(batch, tokens, directions, channels), in x's dtype."""
    walk = _Walk(args)
    sums = walk.weighted_sums()
    return walk.scatter(F.silu(sums) if args.silu else sums).to(args.x.dtype), None


def conv_backward(args: ConvArguments, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight and bias (None where there is none)."""
    walk = _Walk(args)
    dsums = walk.gather(gradient.to(walk.weight.dtype))
    if args.silu:
        sums = walk.weighted_sums()
        sigmoid = torch.sigmoid(sums)
        dsums = dsums * sigmoid * (1 + sums * (1 - sigmoid))
    width, steps = walk.width, walk.steps
    dweight = torch.stack([(dsums * walk.tap(j)).sum((0, 2)) for j in range(width)], dim=-1)
    # Step l was read by tap j at step l + width - 1 - j.
    later = F.pad(dsums, (0, 0, 0, width - 1))
    drows = sum(walk.weight[:, None, :, j] * later[:, :, width - 1 - j : width - 1 - j + steps] for j in range(width))
    dx = walk.scatter(drows).sum(2)
    dbias = None if args.bias is None else dsums.sum((0, 2)).to(args.bias.dtype)
    return dx.to(args.x.dtype), dweight.to(args.weight.dtype), dbias


class _Walk:
    """Rows of x in the order of each direction, preceded by the zeros that the first steps read."""

    def __init__(self, args: ConvArguments):
        self.args = args
        wide = torch.float64 if args.x.dtype == torch.float64 else torch.float32
        self.weight = args.weight.to(wide)
        self.bias = None if args.bias is None else args.bias.to(wide)
        self.width = args.width
        self.steps = args.order.steps
        self.token = args.order.table.long()
        self.visited = (self.token >= 0)[None, :, :, None]
        self.directions = torch.arange(args.order.directions, device=args.x.device)[:, None]
        rows = self.gather(args.x.to(wide).unsqueeze(2).expand(args.output_shape))
        self.rows = F.pad(rows, (0, 0, self.width - 1, 0))

    def tap(self, j: int) -> Tensor:
        """What tap j reads at every step: (batch, directions, steps, channels)."""
        return self.rows[:, :, j : j + self.steps]

    def weighted_sums(self) -> Tensor:
        sums = sum(self.weight[:, None, :, j] * self.tap(j) for j in range(self.width))
        return sums if self.bias is None else sums + self.bias[:, None]

    def gather(self, values: Tensor) -> Tensor:
        """(batch, tokens, directions, channels) -> (batch, directions, steps, channels), zeros at empty steps."""
        rows = values.transpose(1, 2)[:, self.directions, self.token.clamp(min=0)]
        return torch.where(self.visited, rows, torch.zeros_like(rows))

    def scatter(self, rows: Tensor) -> Tensor:
        """The way back; tokens visited twice by a direction receive the sum, in the order of the steps."""
        batch, tokens, directions, channels = self.args.output_shape
        # Empty steps write to a row of their own, behind the tokens.
        place = self.directions, torch.where(self.token >= 0, self.token, tokens)
        values = rows.new_zeros(directions, tokens + 1, batch, channels)
        values = values.index_put(place, rows.permute(1, 2, 0, 3), accumulate=self.args.order.repeats)
        return values[:, :tokens].permute(2, 1, 0, 3)


BACKEND = reference_backend(conv, conv_backward)
