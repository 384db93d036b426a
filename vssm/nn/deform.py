"""Deformable sampling: every position reads where it chooses to."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.nn.conv import ChannelsLastConv2d
from vssm.nn.recompute import recomputed


@register_notrace_module  # reads shapes
class DeformableSampling(nn.Module):
    """Modulated deformable sampling of a 3 x 3 window (DCNv4, arXiv 2401.06197, without its two projections).

    Each position predicts, for each group of channels, where nine samples are taken (an offset in positions, added to
    the place in the window) and a weight for each, neither bounded nor normalised; its output is their weighted sum.
    Between positions a sample is interpolated bilinearly; outside of the map there are zeros. In HRVMamba's mixers.

    Places and weights are computed in float32 at least. Composed of torch's gathering, so that every derivative exists
    (torchvision's deform_conv2d and torch's grid_sample have no second one); torch.compile fuses gathering,
    interpolation and sum into one kernel.

    Args:
        channels: of the map.
        groups: of channels that share their samples.
        depthwise: predict from a 3 x 3 depthwise convolution of the map instead of the map itself.

    Raises:
        ValueError: the groups do not divide the channels.

    >>> DeformableSampling(8, groups=2)(torch.randn(2, 3, 5, 8)).shape
    torch.Size([2, 3, 5, 8])
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        depthwise: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if channels % groups:
            raise ValueError(
                f"{groups} groups share {channels} channels; expected a number of groups that divides them"
            )
        self.groups = groups
        self.depthwise = (
            ChannelsLastConv2d(channels, channels, kernel_size=3, padding=1, groups=channels, **dd)
            if depthwise
            else nn.Identity()
        )
        # official: rounded up to a multiple of 8 for the kernel's sake; the last outputs are not used.
        self.offset_mask = nn.Linear(channels, -(-27 * groups // 8) * 8, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) in and out."""
        height, width = x.shape[1:3]
        predicted = self.offset_mask(self.depthwise(x))[..., : 27 * self.groups].unflatten(-1, (self.groups, 27))
        predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
        # Each group's numbers: nine pairs (columns, rows) to move by, then nine weights. The nine samples are those of
        # the window's columns from left to right, each from top to bottom.
        offsets, weights = predicted[..., :18].unflatten(-1, (9, 2)), predicted[..., 18:]
        rows, columns, window = (torch.arange(size, device=x.device) for size in (height, width, 9))
        x_at = columns[:, None, None] + (window // 3 - 1) + offsets[..., 0]
        y_at = rows[:, None, None, None] + (window % 3 - 1) + offsets[..., 1]
        # What is read is four times as large as the map for each sample. A compiler never writes it to memory; without
        # one it is read in three parts, and again in the backward instead of saved.
        parts = 1 if torch.compiler.is_compiling() else 3
        values = x.unflatten(-1, (self.groups, -1))
        sums = [
            recomputed(weighted_sum, values, *part)
            for part in zip(*(numbers.chunk(parts, dim=-1) for numbers in (y_at, x_at, weights)), strict=True)
        ]
        return sum(sums[1:], sums[0]).to(x.dtype).flatten(-2)


def weighted_sum(values: Tensor, y: Tensor, x: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of samples of a map, each interpolated bilinearly, with zeros around the map.

    Args:
        values: (batch, height, width, groups, channels of a group).
        y, x: (batch, height, width, groups, samples), the row and the column of each sample.
        weights: likewise.

    Returns:
        The shape of `values`, in the dtype of `weights` at least.
    """
    batch, height, width, groups, channels = values.shape
    images, group, step = (torch.arange(size, device=values.device) for size in (batch, groups, 2))
    top, left = y.floor(), x.floor()
    below, right = (y - top)[..., None], (x - left)[..., None]
    # The two rows and the two columns that a sample lies between; what is outside weighs nothing.
    row, column = top.long()[..., None] + step, left.long()[..., None] + step
    by_row = torch.cat([1 - below, below], -1) * ((row >= 0) & (row < height)) * weights[..., None]
    by_column = torch.cat([1 - right, right], -1) * ((column >= 0) & (column < width))
    line = images[:, None, None, None, None, None] * height + row.clamp(0, height - 1)
    place = line[..., :, None] * width + column.clamp(0, width - 1)[..., None, :]
    place = place * groups + group[:, None, None, None]
    shares = (by_row[..., :, None] * by_column[..., None, :]).flatten(-3)
    corners = values.reshape(-1, channels).index_select(0, place.flatten()).view(*shares.shape, channels)
    return (corners * shares[..., None]).sum(-2)
