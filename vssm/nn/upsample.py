"""Between the levels of a decoder: more positions, fewer channels, channels-last maps."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.nn.norm import StreamLayerNorm


@register_notrace_module  # reads shapes
class PatchExpanding(nn.Module):
    """One linear map from a position to a square of positions, then LayerNorm (Swin-Unet, arXiv 2105.05537).

    VM-UNet, MHS-VM: the way back from PatchMerging.

    Args:
        in_channels, channels: before and after.
        factor: side of the square, in positions.

    >>> PatchExpanding(8, 4)(torch.randn(1, 3, 5, 8)).shape
    torch.Size([1, 6, 10, 4])
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        factor: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.factor = factor
        self.expand = nn.Linear(in_channels, factor**2 * channels, bias=False, **dd)
        self.norm = StreamLayerNorm(channels, **dd)
        nn.init.normal_(self.expand.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        x = self.expand(x).view(batch, height, width, self.factor, self.factor, -1)
        return self.norm(x.transpose(2, 3).reshape(batch, height * self.factor, width * self.factor, -1))
