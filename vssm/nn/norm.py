"""Norms: computed in float32, returned in the dtype of the layer that follows."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.ops import add_norm, sum_norm


@register_notrace_module
class BranchLayerNorm(nn.LayerNorm):
    """Layer norm whose output goes into a matrix product; its input is a residual stream or a scan's directions.

    Computed in float32 at least. Returns autocast's dtype where autocast is on, else its weight's dtype: torch's own
    layer norm returns float32 under autocast, which costs another pass to cast.

    >>> norm = BranchLayerNorm(8)
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     norm(torch.randn(2, 3, 8)).dtype
    torch.bfloat16
    >>> norm(torch.randn(2, 3, 4, 8), merge=True).shape
    torch.Size([2, 3, 8])
    """

    def forward(self, x: Tensor, merge: bool = False) -> Tensor:
        """(..., channels) in and out; with merge (..., directions, channels) in, and their sum is normed."""
        dtype = product_dtype(x, self.weight)
        return sum_norm(x, self.weight, self.bias, eps=self.eps, dtype=dtype, merge=merge)

    def of_sum(self, x: Tensor, branch: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
        """x + branch, and its norm: `add_norm`, which says what else can be given."""
        dtype = product_dtype(x, self.weight)
        return add_norm(x, branch, self.weight, self.bias, eps=self.eps, dtype=dtype, **how)


@register_notrace_module
class GroupLayerNorm(nn.LayerNorm):
    """BranchLayerNorm of equal groups of channels, each normed by itself.

    >>> GroupLayerNorm(8, groups=2)(torch.randn(3, 8)).shape
    torch.Size([3, 8])
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(channels, device=device, dtype=dtype)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) in and out."""
        dtype = product_dtype(x, self.weight)
        return sum_norm(x, self.weight, self.bias, eps=self.eps, dtype=dtype, groups=self.groups)


@register_notrace_module
class BranchRMSNorm(nn.RMSNorm):
    """BranchLayerNorm without mean and bias: root-mean-square norm.

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
        """As in BranchLayerNorm."""
        dtype = product_dtype(x, self.weight)
        return sum_norm(x, self.weight, eps=self.eps, center=False, dtype=dtype, merge=merge)

    def of_sum(self, x: Tensor, branch: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
        """As in BranchLayerNorm."""
        dtype = product_dtype(x, self.weight)
        return add_norm(x, branch, self.weight, eps=self.eps, center=False, dtype=dtype, **how)


@register_notrace_module
class StreamLayerNorm(nn.LayerNorm):
    """Layer norm whose output is a residual stream, such as a stem's: float32 under autocast, like torch's own.

    It runs the kernel of BranchLayerNorm, which is faster than torch's where rows are short.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     StreamLayerNorm(8)(torch.randn(2, 3, 8, dtype=torch.bfloat16)).dtype
    torch.float32
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) in and out."""
        dtype = x.dtype if autocast_dtype(x) is None else torch.promote_types(x.dtype, torch.float32)
        return sum_norm(x, self.weight, self.bias, eps=self.eps, dtype=dtype)


def product_dtype(x: Tensor, weight: Tensor | None) -> torch.dtype:
    """The dtype in which a module with weights like `weight` computes a matrix product of x; of one without, x's."""
    return autocast_dtype(x) or (x if weight is None else weight).dtype


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast computes matrix products of x in; None where it is off, or leaves x as it is, as float64."""
    device = x.device.type
    # torch raises for the meta device, which has no autocast.
    if device != "meta" and x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None
