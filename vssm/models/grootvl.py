"""GrootVL, later called MambaTree: states move along the minimum spanning tree of each map.

A pyramid of four stages. Where other families scan along an order that is the same for all images, every block here
joins the positions of its map that are most alike to a tree, and lets each position read all others along it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import ClassifierHead
from torch import Tensor, nn

from vssm.models._checkpoint import Renaming, under
from vssm.models._family import Family, Variant
from vssm.models._layouts import SS2D_ROWS
from vssm.models._pyramid import Pyramid, make_stages
from vssm.nn import (
    Block,
    BranchLayerNorm,
    ConvDownsample,
    ConvNormAct,
    ConvStem,
    LeanMlp,
    StreamLayerNorm,
    TreeMixer,
    initialise_linear_layers,
)
from vssm.ops import grid_tree, tree_scan
from vssm.values import widened

_EPS = 1e-6  # of the layer norms outside the mixers
_Norm = partial(StreamLayerNorm, eps=_EPS)


class ConvHead(ClassifierHead):
    """A 1 x 1 convolution to half as many channels more, batch norm, GELU, pooling, a classifier.

    Args:
        in_features: channels of the map.
        num_classes, pool_type, drop_rate: as in timm's ClassifierHead.

    >>> ConvHead(8, 10, pool_type="avg", input_fmt="NHWC")(torch.randn(2, 3, 5, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **how: Any,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(3 * in_features // 2, num_classes, **how, **dd)
        self.widen = ConvNormAct(in_features, self.in_features, kernel_size=1, act_layer=nn.GELU, **dd)

    def reset(self, num_classes: int, pool_type: str | None = None, in_features: int | None = None, **dd: Any) -> None:
        widened = not isinstance(self.widen, nn.Identity)
        super().reset(num_classes, pool_type, in_features=None if widened else in_features, **dd)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return super().forward(self.widen(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), pre_logits)


_MIXER = (
    *SS2D_ROWS,
    ("h_norm", "state_norm"),
)
_BLOCK = (
    ("norm1.0", "norm"),
    ("norm2.0", "norm2"),
    ("TreeSSM", "mixer"),
    *under("TreeSSM", "mixer", _MIXER),
)


class GrootVL(Pyramid):
    """GrootVL.

    Args:
        dims, depths: channels and number of blocks of each stage.
        expansion: of the mixers, see TreeMixer.
        mlp_ratio: hidden channels of the MLPs per channel.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> model = GrootVL(dims=(16, 32), depths=(1, 1), num_classes=10)
    >>> model.eval()(torch.randn(1, 3, 65, 40)).shape
    torch.Size([1, 10])
    """

    renaming = Renaming(
        rows=(
            ("patch_embed", "stem"),
            ("patch_embed.norm1.1", "stem.norm1"),
            ("patch_embed.norm2.1", "stem.norm2"),
            ("levels.{i}.blocks.{j}", "stages.{i}.blocks.{j}"),
            *under("levels.{i}.blocks.{j}", "stages.{i}.blocks.{j}", _BLOCK),
            ("levels.{i}.norm.0", "stages.{i}.norm"),
            # The official downsampling ends a stage; here: it begins the next one, so that a stage ends in its map.
            ("levels.{i}.downsample", "stages.{i+1}.downsample"),
            ("levels.{i}.downsample.norm.1", "stages.{i+1}.downsample.norm"),
            ("conv_head.0", "head.widen.conv"),
            ("conv_head.1.0", "head.widen.bn"),
            ("head", "head.fc"),
        )
    )
    first_conv = "stem.conv1"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: Sequence[int] = (80, 160, 320, 640),
        depths: Sequence[int] = (2, 2, 9, 2),
        expansion: float = 2.0,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}

        def block(stage: int, index: int, dim: int, drop_path: float) -> Block:
            mlp = LeanMlp(dim, widened(dim, mlp_ratio, "mlp_ratio"), **dd)
            return Block(dim, TreeMixer(dim, expansion, **dd), mlp, drop_path, partial(BranchLayerNorm, eps=_EPS), **dd)

        downsample = partial(ConvDownsample, bias=False, norm=_Norm)
        stages = make_stages(block, dims, depths, downsample, drop_path_rate, _Norm, **dd)
        stages[-1].norm = _Norm(dims[-1], **dd)  # the maps that dense heads read are normed, the last one too
        super().__init__(
            ConvStem(in_chans, dims[0], eps=_EPS, **dd),
            stages,
            nn.Identity(),
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            ConvHead,
            **dd,
        )
        initialise_linear_layers(self)

    def remove_head(self) -> None:
        self.head.widen = nn.Identity()
        super().remove_head()


def _variant(size: str, file: str, **arguments: Any) -> Variant:
    address = f"https://drive.google.com/file/d/{file}/view?usp=drive_link"
    return Variant(f"grootvl_{size}", f"GrootV-{size[0].upper()}", arguments, address)


_DEEP = (2, 2, 13, 2)

FAMILY = Family(
    title="GrootVL",
    model=GrootVL,
    paper="2406.02395",
    repository="https://github.com/EasonXiao-888/GrootVL",
    commit="0857f0a12f6e46873d05e4b9a73d987e97b149c3",
    license="mit",
    owner="easonxiao",
    strides=(4, 8, 16, 32),
    small={"grootvl_tiny": {"dims": (16, 24, 32, 40), "depths": (1, 1, 1, 1)}},
    variants=(
        _variant("tiny", "1OIiMBxk92WhPssRg0pv0U5y8ZBtHq2eQ"),
        _variant("small", "1G6DdEI3JDSltfbmZmcqz79rxM1t01K_8", dims=(96, 192, 384, 768), depths=_DEEP),
        _variant("base", "1-8rwMVinj_fV9YMlzx6fGwdjxyLcjd3w", dims=(128, 256, 512, 1024), depths=_DEEP),
    ),
    cfg={"crop_pct": 1.0},  # official: the shorter side is resized to 224, and nothing of it cut off
    parts=(
        ("tree topology", "MinimumSpanningTree, BFS", grid_tree),
        ("tree scanning algorithm", "tree_scanning_core, Refine", tree_scan),
        ("TreeSSM", "Tree_SSM", TreeMixer),
        ("GrootV block", "GrootVLayer", Block),
        ("stem", "StemLayer", ConvStem),
        ("GrootV", "GrootV", GrootVL),
    ),
)
