"""Hydra: bidirectional state space models through generalized matrix mixers.

Patches in raster order, without class token and position embedding. Every block mixes them by a quasiseparable matrix:
two passes of Mamba-2's state-space duality, forwards and backwards, and a diagonal. Of the image model neither code nor
weights are published: it is built from the paper, and model_cards/hydra.md says what had to be chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vssm.models._checkpoint import Renaming, under
from vssm.models._family import Family, Variant
from vssm.models._plain import Plain
from vssm.nn import Block, Blocks, BranchLayerNorm, HydraMixer, PatchStem, drop_path_rates
from vssm.ops import ssd
from vssm.scan import OrderFunction, bidirectional

# What the official mixer calls its parts; no names of a model are published.
_MIXER = (("conv1d", "conv"), ("conv1d.weight", "conv.weight", (0, 1, (2, 3))), ("fc_D", "diagonal"))


class Hydra(Plain):
    """Hydra-ViT.

    Args:
        patch_size: pixels.
        embed_dim, depth: size of the model.
        state, expansion, scan_order: of the mixers, see HydraMixer.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> model = Hydra(embed_dim=32, depth=2, num_classes=10)
    >>> model(torch.randn(1, 3, 96, 130)).shape
    torch.Size([1, 10])
    """

    renaming = Renaming(under("blocks.{i}.mixer", "blocks.{i}.mixer", _MIXER))
    first_conv = f"patch_embed.{PatchStem.first_conv}"

    def __init__(
        self,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 768,
        depth: int = 24,
        state: int = 64,
        expansion: float = 2.0,
        scan_order: OrderFunction = bidirectional,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(embed_dim, patch_size, depth, in_chans, num_classes, global_pool, drop_rate, **dd)
        self.patch_embed = PatchStem(in_chans, embed_dim, patch_size, **dd)

        def block(drop_path: float) -> Block:
            mixer = HydraMixer(embed_dim, state=state, expansion=expansion, scan_order=scan_order, **dd)
            return Block(embed_dim, mixer, drop_path=drop_path, **dd)

        rates = drop_path_rates(drop_path_rate, depth)
        self.blocks = Blocks(*map(block, rates))
        self.norm = BranchLayerNorm(embed_dim, **dd)

    def no_weight_decay(self) -> set[str]:
        # official: one-dimensional tensors, and by a flag the rates, the step sizes' biases and D.
        return self.parameters_ending("A_log", "dt_bias", "D")

    def embed(self, image: Tensor) -> tuple[Tensor, int, int]:
        patches = self.patch_embed(image)
        _, height, width, _ = patches.shape
        stream = torch.promote_types(self.patch_embed.proj.weight.dtype, torch.float32)
        return patches.flatten(1, 2).to(stream), height, width


FAMILY = Family(
    title="Hydra",
    model=Hydra,
    paper="2407.09941",
    repository="https://github.com/goombalab/hydra",
    commit="55bef7459b6a5a70c2fc672f073f379da4f3c764",
    license="mit",
    owner="goombalab",
    strides=(16,),
    cfg={"pool_size": (14, 14)},
    small={"hydra_vit_base": {"embed_dim": 32, "depth": 2, "state": 8}},
    variants=(Variant("hydra_vit_base", "Hydra-ViT-B"),),
    parts=(
        ("semiseparable matrix, state-space duality (SSD)", "mamba_chunk_scan_combined", ssd),
        ("quasiseparable matrix mixer", "Hydra", HydraMixer),
        ("scan forwards and backwards", "flip", bidirectional),
        ("Hydra-ViT", "not published", Hydra),
    ),
)
