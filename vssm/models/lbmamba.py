"""LBMamba: locally bi-directional Mamba.

Vim's sequence of patches with one scan per block instead of two. Inside short aligned blocks of the sequence a second
scan runs backwards over the same steps, so that a token also sees the next few; every block of the network reads the
sequence the other way round than the one before it, so that two of them see all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.models._checkpoint import Renaming, under
from vssm.models._family import Family, Variant
from vssm.models._layouts import MAMBA_ROWS
from vssm.models._plain import PlainWithPosition, with_norm_biases
from vssm.models.vim import initialise_as_vim
from vssm.nn import (
    Block,
    Blocks,
    BranchLayerNorm,
    BranchRMSNorm,
    LatentPooling,
    OrderTable,
    PatchStem,
    SelectiveScan,
    VimMixer,
    drop_path_rates,
    initialise_linear_layers,
    product_of_recomputed,
)
from vssm.ops import ScanTable
from vssm.scan import OrderFunction, ScanOrder, backwards, raster


def window(steps: int) -> int:
    """The length of the blocks that a sequence of so many steps is cut into.

    official: what one thread of the CUDA kernel walks (another number on ROCm); the weights belong to it.

    >>> window(100), window(196), window(400)
    (4, 8, 16)
    """
    return 4 if steps <= 128 else 8 if steps <= 256 else 16


@dataclass(frozen=True)
class LocallyBackwards:
    """The walk of an order, block by block, each block from its end; the last is filled up with empty steps.

    >>> LocallyBackwards(raster)(1, 6).table
    tensor([[ 3,  2,  1,  0, -1, -1,  5,  4]], dtype=torch.int32)
    """

    order: OrderFunction

    def __call__(self, height: int, width: int) -> ScanOrder:
        made = self.order(height, width)
        steps = made.table.shape[1]
        length = window(steps)
        blocks = F.pad(made.table, (0, -steps % length), value=-1).unflatten(1, (-1, length))
        return ScanOrder(blocks.flip(2).flatten(1), made.tokens)


class LocallyBidirectionalScan(SelectiveScan):
    """A scan whose states also hold what comes back from the end of their block; parameters are those of one scan.

    With decays a_t and inputs b_t the state that is read is h_t + r_t, where over the whole sequence
    h_t = a_t h_{t-1} + b_t, and inside the block r_t = a_t (r_{t+1} + b_{t+1}): what comes from the right decays by the
    step that it arrives at, and the step's own input counts once.
    """

    def forward(self, tokens: Tensor, order: ScanTable, locally: ScanTable) -> Tensor:
        """The sum over the directions.

        Args:
            tokens: (batch, tokens, channels) or (batch, tokens, directions, channels).
            order: of the scan.
            locally: the same order, backwards inside each block.

        Returns:
            (batch, tokens, channels).
        """
        delta, B, C = self.project(tokens)

        def scanned(D: Tensor | None, **how: Any) -> Tensor:
            return self._scan(tokens, delta, B, C, D, merge=True, **how)

        # A scan of the block backwards reads r_t + b_t; one that starts anew at every step reads b_t alone.
        within = scanned(None, order=locally, segment=window(order.steps)) - scanned(None, order=order, segment=1)
        return scanned(self._each(self.D), order=order) + within


@register_notrace_module
class LBMambaMixer(VimMixer):
    """Mamba's block with a locally bidirectional scan: causal convolution, SiLU, scan, gate, between projections.

    Args:
        dim, state, conv_width, scan_order: as in VimMixer.

    >>> LBMambaMixer(8)(torch.randn(2, 15, 8), height=3, width=5).shape
    torch.Size([2, 15, 8])
    """

    scan_class = LocallyBidirectionalScan

    def __init__(
        self,
        dim: int,
        state: int = 16,
        conv_width: int = 4,
        scan_order: OrderFunction = raster,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(dim, state, conv_width, scan_order, device=device, dtype=dtype)
        self.local_table = OrderTable(LocallyBackwards(scan_order))

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        order, locally = (table(height, width, tokens.device) for table in (self.order_table, self.local_table))
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        x = self.convolved(x, order)
        total = self.scan(x, order, locally)
        return product_of_recomputed(self.out_proj, self.gate, total, z)


RENAMING = Renaming(
    (("layers.{i}", "blocks.{i}"), *under("layers.{i}.mixer", "blocks.{i}.mixer", MAMBA_ROWS), ("norm_f", "norm"))
)
_POOLED_BY_ATTENTION = Renaming(
    (("head.0", "attn_pool"), ("head.0.post_norm", "attn_pool.norm"), ("head.1", "head")),
)


class LBMamba(PlainWithPosition):
    """LBMamba, in Vim's place: LBVim.

    The maps of `forward_intermediates` are what a block adds to the stream, and not the stream itself; with `norm` they
    are the normed stream.

    Args:
        img_size: pixels, one number or (height, width), of the images that the position embedding is stored for; any
            other size is resized to in `forward`.
        patch_size: pixels.
        embed_dim, depth, state: size of the model.
        scan_order: of the patches in every second block, a function (height, width) -> ScanOrder; in the others it runs
            backwards.
        global_pool: as in Plain, or "map", timm's name for pooling by the attention of a learned query.
        pool_heads: of that pooling.
        layer_norm: norms with mean and bias, as in the authors' segmentors; a classifier's weights fit.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, device, dtype: as everywhere in timm.

    >>> model = LBMamba(embed_dim=32, depth=2, num_classes=10)
    >>> model(torch.randn(1, 3, 96, 130)).shape
    torch.Size([1, 10])
    """

    renaming = RENAMING
    pools = ("map", *PlainWithPosition.pools)
    first_conv = f"patch_embed.{PatchStem.first_conv}"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 192,
        depth: int = 24,
        state: int = 16,
        scan_order: OrderFunction = raster,
        pool_heads: int = 6,
        layer_norm: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(embed_dim, patch_size, depth, in_chans, num_classes, global_pool, drop_rate, **dd)
        self.patch_embed = PatchStem(in_chans, embed_dim, patch_size, patch_size, **dd)
        self.add_position(img_size, **dd)
        norm = BranchLayerNorm if layer_norm else BranchRMSNorm
        # official: the tokens are flipped in memory after every layer. Here: the order is.
        orders = scan_order, backwards(scan_order)
        rates = drop_path_rates(drop_path_rate, depth)
        mixers = [LBMambaMixer(embed_dim, state, scan_order=orders[i % 2], **dd) for i in range(depth)]
        self.blocks = Blocks(
            *(
                Block(embed_dim, mixer, drop_path=rate, norm=norm, **dd)
                for mixer, rate in zip(mixers, rates, strict=True)
            )
        )
        self.norm = norm(embed_dim, **dd)
        self.attn_pool = LatentPooling(embed_dim, pool_heads, **dd) if global_pool == "map" else None
        if self.attn_pool is not None:
            self.renaming = RENAMING + _POOLED_BY_ATTENTION
        initialise_as_vim(self)
        for head in (self.attn_pool, self.head):
            if head is not None:
                initialise_linear_layers(head)

    def resize_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return with_norm_biases(super().resize_weights(state), self)

    def run_to_map(self, block: nn.Module, tokens: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        # official: detection and segmentation read a layer's output before it is added to the residual stream.
        branch = self._run(block.branch, tokens, height, width)
        return tokens + block.drop_path(branch), branch

    def _pool(self, tokens: Tensor) -> Tensor:
        return super()._pool(tokens) if self.attn_pool is None else self.attn_pool(tokens)

    def _checked_pool(self, global_pool: str) -> str:
        if global_pool == "map" and getattr(self, "attn_pool", self) is None:
            raise ValueError('this model has no pooling by attention; expected global_pool="map" where it is created')
        return super()._checked_pool(global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        if self.global_pool != "map":
            self.attn_pool = None


FAMILY = Family(
    title="LBMamba",
    model=LBMamba,
    paper="2506.15976",
    repository="https://github.com/cvlab-stonybrook/LBMamba",
    commit="521555165f879530407ac007f7f1fc885dcd20a3",
    license="unknown",
    owner="cvlab_stonybrook",
    strides=(16,),
    cfg={"pool_size": (14, 14)},
    small={
        "lbvim_tiny": {"embed_dim": 48, "depth": 2, "img_size": 64},
        "lbvim_528": {"embed_dim": 36, "depth": 2, "img_size": 64},
    },
    variants=(
        Variant("lbvim_tiny", "LBVim-Ti", {"embed_dim": 192}),
        Variant("lbvim_300", "LBVim-300", {"embed_dim": 300}),
        Variant("lbvim_small", "LBVim-S", {"embed_dim": 384}),
        Variant("lbvim_528", "LBVim-528, pooled by attention", {"embed_dim": 528, "global_pool": "map"}),
    ),
    parts=(
        ("locally bi-directional scan (LBM)", "selective_scan with lbm", LocallyBidirectionalScan),
        ("local blocks", "items per thread", LocallyBackwards),
        ("LBMamba block's mixer", "Mamba with bimamba_type none", LBMambaMixer),
        ("reversal of the sequence between blocks", "layerwise_reverse_sq", backwards),
        ("attention pooling", "head_type att_qkv_onlyatt_pnorm_nomapq", LatentPooling),
        ("LBVim", "VisionMamba", LBMamba),
    ),
)
