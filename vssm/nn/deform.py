"""Deformable sampling: every position reads where it chooses to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vssm.nn.conv import ChannelsLastConv2d
from vssm.nn.linear import Linear
from vssm.ops import deformable_sampling
from vssm.values import check_divides


class DeformableSampling(nn.Module):
    """Modulated deformable sampling of a 3 x 3 window (DCNv4, arXiv 2401.06197, without its two projections).

    Each position predicts, for each group of channels, where nine samples are taken (an offset in positions, added to
    the place in the window) and a weight for each, neither bounded nor normalised; its output is their weighted sum:
    `vssm.ops.deformable_sampling`. In HRVMamba's mixers.

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
        check_divides(groups, "groups", channels, "channels")
        self.groups = groups
        self.depthwise = (
            ChannelsLastConv2d(channels, channels, kernel_size=3, padding=1, groups=channels, **dd)
            if depthwise
            else nn.Identity()
        )
        # official: rounded up to a multiple of 8 for the kernel's sake; the last outputs are not used.
        self.offset_mask = Linear(channels, -(-27 * groups // 8) * 8, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) in and out."""
        return deformable_sampling(x, self.offset_mask(self.depthwise(x)), self.groups)
