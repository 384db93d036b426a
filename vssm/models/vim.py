"""Vim: Vision Mamba, efficient visual representation learning with bidirectional state space model.

A sequence of patches with a class token in its middle; every block scans it forwards and backwards, each direction
with its own causal convolution and state-space parameters, and adds to a residual stream kept in float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import lecun_normal_
from torch import nn

from vssm.models._checkpoint import Renaming, under
from vssm.models._family import Family, Variant
from vssm.models._plain import PlainWithPosition
from vssm.nn import (
    Block,
    Blocks,
    BranchRMSNorm,
    PatchStem,
    VimMixer,
    drop_path_rates,
    initialise_linear_layers,
)
from vssm.scan import OrderFunction, bidirectional, with_class_token

# Official: a tensor for each direction; here: stacked.
_MIXER = (
    (("A_log", "A_b_log"), "scan.A_log"),
    (("D", "D_b"), "scan.D"),
    (("x_proj.weight", "x_proj_b.weight"), "scan.x_proj"),
    (("dt_proj.weight", "dt_proj_b.weight"), "scan.dt_proj"),
    (("dt_proj.bias", "dt_proj_b.bias"), "scan.dt_bias"),
    (("conv1d.weight", "conv1d_b.weight"), "conv_weight", (0, (), 1)),
    (("conv1d.bias", "conv1d_b.bias"), "conv_bias"),
)
RENAMING = Renaming(
    rows=(
        ("layers.{i}", "blocks.{i}"),
        *under("layers.{i}.mixer", "blocks.{i}.mixer", _MIXER),
        ("norm_f", "norm"),
    ),
    dropped=("rope.",),  # buffers of older checkpoints, computed and not learned
)


class Vim(PlainWithPosition):
    """Vision Mamba.

    Args:
        img_size: pixels, one number or (height, width), of the images that the position embedding is stored for; any
            other size is resized to in `forward`.
        patch_size, stride: pixels; the "+" models overlap their patches.
        embed_dim, depth, state: size of the model.
        scan_order: of the patches, a function (height, width) -> ScanOrder.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> model = Vim(embed_dim=32, depth=2, num_classes=10)
    >>> model(torch.randn(1, 3, 96, 130)).shape
    torch.Size([1, 10])
    """

    renaming = RENAMING
    first_conv = f"patch_embed.{PatchStem.first_conv}"
    has_class_token = True

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 192,
        depth: int = 24,
        state: int = 16,
        scan_order: OrderFunction = bidirectional,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(embed_dim, stride, depth, in_chans, num_classes, global_pool, drop_rate, **dd)
        self.patch_embed = PatchStem(in_chans, embed_dim, patch_size, stride, **dd)
        self.add_position(img_size, **dd)
        rates = drop_path_rates(drop_path_rate, depth)
        self.blocks = Blocks(
            *(
                Block(
                    embed_dim,
                    VimMixer(embed_dim, state, scan_order=with_class_token(scan_order), **dd),
                    drop_path=rate,
                    norm=BranchRMSNorm,
                    **dd,
                )
                for rate in rates
            )
        )
        self.norm = BranchRMSNorm(embed_dim, **dd)
        initialise_as_vim(self)
        initialise_linear_layers(self.head)


@torch.no_grad()
def initialise_as_vim(model: PlainWithPosition) -> None:
    """Vim's official initialisation of all but the head, beyond what the modules start with."""
    nn.init.normal_(model.pos_embed, std=0.02)
    if model.has_class_token:
        nn.init.normal_(model.cls_token, std=0.02)
    lecun_normal_(model.patch_embed.proj.weight)
    nn.init.zeros_(model.patch_embed.proj.bias)
    for block in model.blocks:
        block.mixer.out_proj.weight.div_(math.sqrt(len(model.blocks)))


def _variant(name: str, title: str, file: str, **arguments: Any) -> Variant:
    overlapping = {"cfg": {"pool_size": (27, 27)}, "strides": (8,)} if "stride" in arguments else {}
    return Variant(name, title, arguments, f"https://huggingface.co/hustvl/{file}", **overlapping)


FAMILY = Family(
    title="Vim",
    model=Vim,
    paper="2401.09417",
    repository="https://github.com/hustvl/Vim",
    commit="dd0358ad1e42701f22afbefa0717cc8825cf9f45",
    license="apache-2.0",
    owner="hustvl",
    strides=(16,),
    cfg={"pool_size": (14, 14)},
    small={
        "vim_tiny": {"embed_dim": 32, "depth": 3, "img_size": 64},
        "vim_tiny_plus": {"embed_dim": 32, "depth": 2, "img_size": 64},
    },
    variants=(
        _variant("vim_tiny", "Vim-Ti", "Vim-tiny-midclstok/resolve/main/vim_t_midclstok_76p1acc.pth", embed_dim=192),
        _variant(
            "vim_tiny_plus",
            "Vim-Ti with overlapping patches (Vim-Ti+)",
            "Vim-tiny-midclstok/resolve/main/vim_t_midclstok_ft_78p3acc.pth",
            embed_dim=192,
            stride=8,
        ),
        _variant("vim_small", "Vim-S", "Vim-small-midclstok/resolve/main/vim_s_midclstok_80p5acc.pth", embed_dim=384),
        _variant(
            "vim_small_plus",
            "Vim-S with overlapping patches (Vim-S+)",
            "Vim-small-midclstok/resolve/main/vim_s_midclstok_ft_81p6acc.pth",
            embed_dim=384,
            stride=8,
        ),
        _variant("vim_base", "Vim-B", "Vim-base-midclstok/resolve/main/vim_b_midclstok_81p9acc.pth", embed_dim=768),
    ),
    parts=(
        ("patch embedding and projection layer", "PatchEmbed", PatchStem),
        ("bidirectional SSM", "Mamba with bimamba_type v2", VimMixer),
        ("scan forwards and backwards", "flip", bidirectional),
        ("Vim block (encoder)", "Block", Block),
        ("Vim", "VisionMamba", Vim),
    ),
    timed=("vim_tiny", "vim_small"),
)
