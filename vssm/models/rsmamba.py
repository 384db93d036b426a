"""RSMamba: remote sensing image classification with state space model.

Overlapping patches of an image pass through Mamba's blocks; every block walks them along several paths, forwards,
backwards and in a random order, with the same parameters, and weighs the paths by what they give on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DropPath, register_notrace_module
from torch import Tensor, nn

from vssm.models._checkpoint import under
from vssm.models._contract import Indices
from vssm.models._family import Family, TrainingData, Variant
from vssm.models._layouts import MAMBA_ROWS, in_mmpretrain
from vssm.models._plain import PlainWithPosition
from vssm.nn import BranchLayerNorm, PatchStem, VimMixer, drop_path_rates
from vssm.ops import direction_means, weighted_sum
from vssm.scan import OrderFunction, ScanOrder, bidirectional, stack


@dataclass(frozen=True)
class WithRandomPath:
    """An order, and one more path in a random order, which the seed, the layer and the number of tokens decide.

    official: drawn anew in every forward, in evaluation too, so that no output comes twice. Here: drawn once from the
    seed, layer after layer. Seed 0 gives what the official code gives right after `torch.manual_seed(0)`.

    >>> WithRandomPath(bidirectional, seed=0, layer=1)(1, 4).directions
    3
    """

    order: OrderFunction
    seed: int
    layer: int

    def __call__(self, height: int, width: int) -> ScanOrder:
        made = self.order(height, width)
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.layer + 1):
            path = torch.randperm(made.tokens, generator=generator, device="cpu")
        return stack(made, ScanOrder(path[None], made.tokens))


@register_notrace_module
class MultiPathMixer(VimMixer):
    """Mamba's block along several paths with the same parameters; their outputs are weighed, or averaged.

    Args:
        dim, state, scan_order: as in VimMixer.
        gated: weights from a linear layer over the paths' mean outputs and a softmax; else all the same.
        drop_path: rate of stochastic depth.

    >>> MultiPathMixer(8)(torch.randn(2, 15, 8), height=3, width=5).shape
    torch.Size([2, 15, 8])
    """

    def __init__(
        self,
        dim: int,
        state: int = 16,
        scan_order: OrderFunction = bidirectional,
        gated: bool = True,
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, state, scan_order=scan_order, shared=True, **dd)
        paths = self.directions
        self.path_gate = nn.Linear(paths * dim, paths, bias=False, **dd) if gated and paths > 1 else None
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(batch, tokens, dim) in and out; `height` and `width` of the grid of patches."""
        if self.path_gate is None:
            return self.drop_path(super().forward(tokens, height, width))
        order = self.order_table(height, width, tokens.device)
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        paths = self.scan(self.convolved(x, order), order)
        # The projection is linear: the mean of its outputs is its output for the mean, and so is the weighted sum.
        means = self.out_proj(direction_means(paths, z))
        weights = self.path_gate(means.flatten(1)).softmax(-1)
        return self.drop_path(self.out_proj(weighted_sum(paths, weights.unsqueeze(-1), z)))


class RSMamba(PlainWithPosition):
    """RSMamba.

    Args:
        img_size: pixels, one number or (height, width), of the images that the position embedding is stored for; any
            other size is resized to in `forward`.
        patch_size, stride: pixels.
        embed_dim, depth, state: size of the model.
        scan_order: of the paths, a function (height, width) -> ScanOrder.
        random_path: one more path in a random order, another in every block.
        seed: of the random paths.
        gated: see MultiPathMixer. The paper's path types are: forward (scan_order=raster, random_path=False), mean of
            forward and reverse (random_path=False, gated=False), gate of both (random_path=False), and the default.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> model = RSMamba(embed_dim=32, depth=2, num_classes=10)
    >>> model(torch.randn(1, 3, 96, 130)).shape
    torch.Size([1, 10])
    """

    renaming = in_mmpretrain(
        (
            ("patch_embed.projection", "patch_embed.proj"),
            ("pos_embed", "pos_embed"),
            ("pre_norm", "pre_norm"),
            ("layers.{i}", "blocks.{i}"),
            *under("layers.{i}", "blocks.{i}", MAMBA_ROWS),
            ("gate_layers.{i}.0", "blocks.{i}.path_gate"),
            ("ln1", "norm"),
            ("ln2", "fc_norm"),
        )
    )
    first_conv = f"patch_embed.{PatchStem.first_conv}"
    antialias = False

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int = 8,
        in_chans: int = 3,
        num_classes: int = 45,
        global_pool: str = "avg",
        embed_dim: int = 192,
        depth: int = 24,
        state: int = 16,
        scan_order: OrderFunction = bidirectional,
        random_path: bool = True,
        seed: int = 0,
        gated: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(embed_dim, stride, depth, in_chans, num_classes, global_pool, drop_rate, **dd)
        self.patch_embed = PatchStem(in_chans, embed_dim, patch_size, stride, bias=False, padding=None, **dd)
        self.add_position(img_size, **dd)
        # official: one norm, of whose output every block is a branch.
        self.pre_norm = BranchLayerNorm(embed_dim, eps=1e-6, **dd)
        rates = drop_path_rates(drop_path_rate, depth)
        orders = [WithRandomPath(scan_order, seed, layer) if random_path else scan_order for layer in range(depth)]
        self.blocks = nn.Sequential(
            *(
                MultiPathMixer(embed_dim, state, *each, **dd)
                for each in zip(orders, [gated] * depth, rates, strict=True)
            )
        )
        self.norm = BranchLayerNorm(embed_dim, eps=1e-6, **dd)
        self.fc_norm = BranchLayerNorm(embed_dim, eps=1e-6, **dd)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """The official initialisation, beyond what the modules start with; that of the step sizes is torch's own."""
        nn.init.normal_(self.pos_embed, std=0.02)
        nn.init.kaiming_normal_(self.patch_embed.proj.weight, nonlinearity="linear")
        for block in self.blocks:
            nn.init.uniform_(block.scan.dt_bias, -(block.scan.rank**-0.5), block.scan.rank**-0.5)
        if self.num_classes > 0:
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)

    def _run(self, block: nn.Module, tokens: Tensor, height: int, width: int) -> Tensor:
        return tokens + super()._run(block, self.pre_norm(tokens), height, width)

    def _pool(self, tokens: Tensor) -> Tensor:
        return self.fc_norm(super()._pool(tokens))

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        if prune_head:
            self.fc_norm = nn.Identity()
        return super().prune_intermediate_layers(indices, prune_norm, prune_head)


# Of the images of NWPU-RESISC45, as the official repository has them: red, green, blue, of 255.
_MEAN = tuple(value / 255 for value in (93.847266, 97.20128819, 87.66547902))
_DEVIATION = tuple(value / 255 for value in (37.10216765, 34.61650149, 33.70191772))
RESISC45 = TrainingData("resisc45", "NWPU-RESISC45", "timm/resisc45", 45)


def _variant(name: str, title: str, file: str = "", **arguments: Any) -> Variant:
    weights = f"https://huggingface.co/KyanChen/RSMamba/resolve/main/{file}" if file else ""
    return Variant(name, title, arguments, weights)


FAMILY = Family(
    title="RSMamba",
    model=RSMamba,
    paper="2403.19654",
    repository="https://github.com/KyanChen/RSMamba",
    commit="3fa3056316f1412851e484384e9f206e0a11bf2b",
    license="apache-2.0",
    owner="kyanchen",
    data=RESISC45,
    strides=(8,),
    cfg={"pool_size": (28, 28), "mean": _MEAN, "std": _DEVIATION},
    small={"rsmamba_base": {"embed_dim": 32, "depth": 2, "img_size": 64}},
    variants=(
        _variant("rsmamba_small", "RSMamba-S", embed_dim=192, depth=16),
        _variant("rsmamba_base", "RSMamba-B", embed_dim=192, depth=24),
        _variant("rsmamba_large", "RSMamba-L", embed_dim=256, depth=36),
        _variant("rsmamba_huge", "RSMamba-H", "RSMamba-h_NWPU.pth", embed_dim=320, depth=48),
    ),
    parts=(
        ("forward and reverse paths", "path_type", bidirectional),
        ("shuffle path", "torch.randperm", WithRandomPath),
        ("multi-path activation mechanism", "RSMamba.forward, gate_layers", MultiPathMixer),
        ("RSMamba", "RSMamba", RSMamba),
    ),
    timed=("rsmamba_base",),
)
