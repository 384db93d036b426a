"""Deformable sampling in plain torch: the measure of its kernels, and what runs where there are none."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm_kernels.deformable_sampling.arguments import NUMBERS, SAMPLES, SamplingArguments
from vssm_kernels.dispatch import reference_backend
from vssm_kernels.saturation import saturate


class Samples(NamedTuple):
    """Where samples lie. The map is a table of rows then, one for each position and group.

    Args:
        corners: (batch, height, width, groups, samples, 2 rows, 2 columns), places in the table of the positions around
            each sample; of those outside of the map, the nearest on it.
        inside: (batch, height, width, groups, samples, 2 axes, 2), whether there are such columns and rows.
        shares: likewise, of the two columns and the two rows in what is read; nothing outside.
        weights: (batch, height, width, groups, samples).
    """

    corners: Tensor
    inside: Tensor
    shares: Tensor
    weights: Tensor

    @classmethod
    def of(cls, args: SamplingArguments) -> Samples:
        _, height, width, _ = args.x.shape
        images, rows, columns, groups, window, two = (
            torch.arange(size, device=args.device) for size in (*args.x.shape[:3], args.groups, SAMPLES, 2)
        )
        predicted = args.predicted[..., : NUMBERS * args.groups].unflatten(-1, (args.groups, NUMBERS))
        predicted = predicted.to(args.wide_dtype)
        offsets, weights = predicted[..., : 2 * SAMPLES].unflatten(-1, (SAMPLES, 2)), predicted[..., 2 * SAMPLES :]
        position = torch.stack([columns.expand(height, -1), rows[:, None].expand(-1, width)], -1)
        place = position[:, :, None, None] + torch.stack([window // 3, window % 3], -1) - 1
        # The offset is added only once rounded, which is exact. One beyond every map is as good as a larger one.
        before = offsets.floor()
        beyond = offsets - before
        far = max(height, width) + 2
        lines = (place + before.clamp(-far, far).long())[..., None] + two
        last = torch.stack([columns[-1], rows[-1]])[:, None]
        nearest = lines.clamp(min=0).minimum(last)
        inside = lines == nearest
        shares = torch.stack([1 - beyond, beyond], -1) * inside
        column, row = nearest.unbind(-2)
        first = (images[:, None] * (height * width * args.groups) + groups)[:, None, None, :, None, None, None]
        corners = first + (row[..., :, None] * width + column[..., None, :]) * args.groups
        return cls(corners, inside, shares, weights)

    def of_corners(self) -> Tensor:
        """(batch, height, width, groups, samples, 2 rows, 2 columns): what each contributes to the sum."""
        by_column, by_row = self.shares.unbind(-2)
        return self.weights[..., None, None] * by_row[..., :, None] * by_column[..., None, :]


def sampling(args: SamplingArguments, save: bool = False) -> tuple[Tensor, None]:
    """(batch, height, width, channels): the sum over samples of weight times what is read between four positions."""
    samples = Samples.of(args)
    read = table(args).index_select(0, samples.corners.flatten()).unflatten(0, samples.corners.shape)
    total = (samples.of_corners()[..., None] * read).sum((-4, -3, -2))
    return saturate(total.flatten(-2), args.output_dtype), None


def sampling_backward(args: SamplingArguments, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and of what was predicted, a sample at a time: nine are nine times as large."""
    samples = Samples.of(args)
    x, contributions = table(args), samples.of_corners()
    gradient = gradient.to(x.dtype).reshape(*samples.weights.shape[:-1], 1, 1, x.shape[-1])
    slopes = samples.inside * torch.tensor([-1.0, 1.0], dtype=x.dtype, device=args.device)
    dx, doffsets, dweights = torch.zeros_like(x), [], []
    for k in range(SAMPLES):
        corners = samples.corners[..., k, :, :].flatten()
        given = gradient * contributions[..., k, :, :, None]
        given = given.reshape(len(corners), x.shape[-1])
        dx = dx.index_put((corners,), given, accumulate=True)  # on a GPU in a fixed order, index_add is not
        read = x.index_select(0, corners).view(*samples.weights.shape[:-1], 2, 2, x.shape[-1])
        of_corners = (gradient * read).sum(-1)  # the gradient of a contribution
        by_column, by_row = samples.shares[..., k, :, :].unbind(-2)
        of_columns, of_rows = (of_corners * by_row[..., None]).sum(-2), (of_corners * by_column[..., None, :]).sum(-1)
        dweights.append((of_columns * by_column).sum(-1))
        dshares = torch.stack([of_columns, of_rows], -2) * samples.weights[..., k, None, None]
        doffsets.append((dshares * slopes[..., k, :, :]).sum(-1))
    *position, numbers = args.predicted.shape
    dpredicted = torch.cat([torch.cat(doffsets, -1), torch.stack(dweights, -1)], -1)
    dpredicted = F.pad(dpredicted.reshape(*position, NUMBERS * args.groups), (0, numbers - NUMBERS * args.groups))
    return dx.view(args.x.shape).to(args.x.dtype), dpredicted.to(args.predicted.dtype)


def table(args: SamplingArguments) -> Tensor:
    """The map as rows, (batch * height * width * groups, channels of a group)."""
    return args.x.unflatten(-1, (args.groups, -1)).flatten(0, -2).to(args.wide_dtype)


BACKEND = reference_backend(sampling, sampling_backward)
