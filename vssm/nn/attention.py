"""Multi-head attention between the positions of a map."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from vssm.nn.linear import Linear
from vssm.nn.norm import BranchLayerNorm
from vssm.values import check_divides


class Attention(nn.Module):
    """Every position attends to every other (arXiv 1706.03762), through torch's scaled_dot_product_attention.

    A mixer: it fits into `vssm.nn.Block`. For attention inside windows, cut the map first (`cut_windows`).

    torch's fused kernels have no second derivative and no forward mode: where these are needed, run the model inside
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.

    | family | heads | qkv_bias | proj_bias | besides |
    |---|---|---|---|---|
    | MambaVision, in windows | 8 to 32 | yes | yes | |
    | VSSD, last stage | 16 to 24 | no | yes | |
    | Mamba2D, last two stages | dim / 32 | no | no | rotary, qk_norm=BranchLayerNorm |
    | Mamba2D, version 1 | dim / 32 | no | no | |

    Args:
        dim: channels.
        heads: number of heads; `dim` is a multiple of it.
        qkv_bias, proj_bias: whether the projection to queries, keys and values (in this order, heads in turn inside
            each) and that of the output have biases.
        rotary: rotates queries and keys (batch, height, width, heads, channels of a head), such as RotaryPosition.
        qk_norm: makes the norms of queries and of keys from the channels of a head; applied after the rotation.

    Raises:
        ValueError: the heads do not divide the channels.

    >>> Attention(8, heads=2)(torch.randn(2, 3, 5, 8)).shape
    torch.Size([2, 3, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        rotary: nn.Module | None = None,
        qk_norm: Callable[..., nn.Module] = nn.Identity,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_divides(heads, "heads", dim, "channels")
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.rotary = rotary
        self.q_norm, self.k_norm = qk_norm(dim // heads, **dd), qk_norm(dim // heads, **dd)
        self.proj = Linear(dim, dim, bias=proj_bias, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) in and out; without rotary also (batch, tokens, dim)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        q, k, v = (part.flatten(1, -3).transpose(1, 2) for part in (self.q_norm(q), self.k_norm(k), v))
        y = _attend(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(x.shape))


class LatentPooling(nn.Module):
    """One learned query attends to all tokens, and a norm: (batch, tokens, dim) to (batch, dim) (LBMamba).

    The query is not projected, nor is the output. It starts from numbers of deviation 0.02.

    Args:
        dim: channels.
        heads: number of heads; `dim` is a multiple of it.

    Raises:
        ValueError: the heads do not divide the channels.

    >>> LatentPooling(8, heads=2)(torch.randn(2, 15, 8)).shape
    torch.Size([2, 8])
    """

    def __init__(
        self, dim: int, heads: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_divides(heads, "heads", dim, "channels")
        self.heads = heads
        self.latent = nn.Parameter(torch.empty(1, 1, dim, **dd))
        self.kv = nn.Linear(dim, 2 * dim, **dd)
        self.norm = BranchLayerNorm(dim, **dd)
        nn.init.normal_(self.latent, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        k, v = self.kv(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q = self.latent.to(k.dtype).unflatten(-1, (self.heads, -1)).transpose(1, 2).expand(tokens.shape[0], -1, -1, -1)
        return self.norm(_attend(q, k, v).flatten(1))


_WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of (batch, heads, tokens, channels).

    torch prepares cuDNN's backward once for queries, keys and values of some layout, and takes the output to lie as it
    did then (2.11; key of the cache in aten/src/ATen/native/cudnn/MHA.cpp). A compiler lays it out otherwise where a
    convolution follows, and after an eager step of the same sizes gradients of VSSD were off by a fifth, silently.
    """
    if not torch.compiler.is_dynamo_compiling():
        return scaled_dot_product_attention(q, k, v)
    with sdpa_kernel(_WITHOUT_CUDNN):
        return scaled_dot_product_attention(q, k, v)
