"""Norms: float32 inside; out in the dtype that comes next takes, matrix products or a residual stream."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.ops import sum_norm


@register_notrace_module
class BranchLayerNorm(nn.LayerNorm):
    """Layer norm in front of a matrix product, of a residual stream or of a scan's directions.

    Computed in float32 at least, and returned in autocast's dtype where autocast is on, else in that of its weight:
    torch's own would return float32 under autocast, to be cast in another pass.

    >>> norm = BranchLayerNorm(8)
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     norm(torch.randn(2, 3, 8)).dtype
    torch.bfloat16
    >>> norm(torch.randn(2, 3, 4, 8), merge=True).shape
    torch.Size([2, 3, 8])
    """

    def forward(self, x: Tensor, merge: bool = False) -> Tensor:
        """(..., channels), both ways; with merge the norm of the sum over directions of (..., directions, channels)."""
        dtype = product_dtype(x, self.weight)
        return sum_norm(x, self.weight, self.bias, eps=self.eps, dtype=dtype, merge=merge)


@register_notrace_module
class BranchRMSNorm(nn.RMSNorm):
    """BranchLayerNorm's counterpart without mean and bias.

    >>> norm = BranchRMSNorm(8, dtype=torch.bfloat16)
    >>> norm(torch.randn(2, 3, 8)).dtype
    torch.bfloat16
    """

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(channels, eps, device=device, dtype=dtype)

    def forward(self, x: Tensor, merge: bool = False) -> Tensor:
        """As BranchLayerNorm's."""
        dtype = product_dtype(x, self.weight)
        return sum_norm(x, self.weight, eps=self.eps, center=False, dtype=dtype, merge=merge)


@register_notrace_module
class StreamLayerNorm(nn.LayerNorm):
    """Layer norm whose output is a residual stream, as that of a stem: float32 under autocast, as torch's own.

    The same kernel as BranchLayerNorm's, which takes less time than torch's where rows are short.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     StreamLayerNorm(8)(torch.randn(2, 3, 8, dtype=torch.bfloat16)).dtype
    torch.float32
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels), both ways."""
        dtype = x.dtype if _autocast_dtype(x) is None else torch.promote_types(x.dtype, torch.float32)
        return sum_norm(x, self.weight, self.bias, eps=self.eps, dtype=dtype, merge=False)


def product_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """What a matrix product of x is computed in, by a module whose weights are like `weight`."""
    return _autocast_dtype(x) or weight.dtype


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """None where autocast is off."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):  # asking raises on the meta device, which has none
        return torch.get_autocast_dtype(device)
    return None
