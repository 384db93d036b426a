"""Deformable sampling: every position reads where it chooses to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.nn.conv import ChannelsLastConv2d
from vssm.nn.recompute import recomputed
from vssm.ops import runs_eagerly


@register_notrace_module  # reads shapes
class DeformableSampling(nn.Module):
    """Modulated deformable sampling of a 3 x 3 window (DCNv4, arXiv 2401.06197, without its two projections).

    Each position predicts, for each group of channels, where nine samples are taken (an offset in positions, added to
    the place in the window) and a weight for each, neither bounded nor normalised; its output is their weighted sum.
    Between positions a sample is interpolated bilinearly; outside of the map there are zeros. In HRVMamba's mixers.

    Places and weights are computed in float32 at least. Composed of torch's gathering, so that every derivative exists
    (torchvision's deform_conv2d and torch's grid_sample have no second one); torch.compile fuses gathering,
    interpolation and sum into one kernel. Without gradients torch's embedding bags, which sum what they gather, do.

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
        position = torch.stack([columns.expand(height, -1), rows[:, None].expand(-1, width)], -1)
        places = position[:, :, None, None] + torch.stack([window // 3, window % 3], -1) - 1
        values = x.unflatten(-1, (self.groups, -1))
        if runs_eagerly() and not torch.is_grad_enabled():
            return weighted_sum(values, places, offsets, weights, bags=True).to(x.dtype).flatten(-2)
        # What is read is four times as large as the map for each sample. A compiler never writes it to memory; without
        # one it is read in three parts, and again in the backward instead of saved.
        parts = 1 if torch.compiler.is_compiling() else 3
        sums = [
            recomputed(weighted_sum, values, *part)
            for part in zip(
                places.chunk(parts, dim=-2), offsets.chunk(parts, dim=-2), weights.chunk(parts, dim=-1), strict=True
            )
        ]
        return sum(sums[1:], sums[0]).to(x.dtype).flatten(-2)


def weighted_sum(values: Tensor, places: Tensor, offsets: Tensor, weights: Tensor, bags: bool = False) -> Tensor:
    """The weighted sum of samples of a map, each interpolated bilinearly, with zeros around the map.

    Args:
        values: (batch, height, width, groups, channels of a group).
        places: (height, width, 1, samples, 2) integers, the column and the row that each sample is moved from.
        offsets: (batch, height, width, groups, samples, 2), by how much: added only once rounded, which is exact.
        weights: (batch, height, width, groups, samples).
        bags: read and sum in one kernel of torch's, which has no second derivatives: what is read is never written.

    Returns:
        The shape of `values`, in the dtype of `weights` at least.
    """
    _, height, width, groups, channels = values.shape
    images, rows, columns, group = (torch.arange(size, device=values.device) for size in values.shape[:-1])
    before = offsets.floor()
    beyond = (offsets - before)[..., None]
    # The two columns and the two rows that a sample lies between; what is outside of the map weighs nothing.
    lines = (places + before.long())[..., None] + torch.arange(2, device=values.device)
    inside = lines.clamp(min=0).minimum(torch.stack([columns[-1], rows[-1]])[:, None])
    shares = torch.cat([1 - beyond, beyond], -1) * (lines == inside)
    column, row = inside.unbind(-2)
    by_column, by_row = shares.unbind(-2)
    first = images[:, None, None, None] * (height * width * groups) + group
    corners = (row[..., :, None] * width + column[..., None, :]) * groups + first[..., None, None, None]
    shares = (by_row[..., :, None] * by_column[..., None, :] * weights[..., None, None]).flatten(-3)
    table = values.reshape(-1, channels)
    if bags:
        corners, shares = corners.reshape(-1, shares.shape[-1]), shares.reshape(-1, shares.shape[-1])
        table = table.to(shares.dtype)
        return F.embedding_bag(corners, table, mode="sum", per_sample_weights=shares).view(values.shape)
    read = table.index_select(0, corners.flatten()).view(*shares.shape, channels)
    return (read * shares[..., None]).sum(-2)
