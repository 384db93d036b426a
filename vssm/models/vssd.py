"""VSSD: every position of a map adds to one state, and reads the whole of it; no order, no decay.

A pyramid of four stages. Mamba-2's state-space duality weighs a token less the longer ago it was; without that decay
the state is one sum over all tokens, made and read by two matrix products. The last stage attends instead, with
ordinary attention. Stem, downsampling and conditional positions come from MLLA, as those of Spatial-Mamba.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vssm.models._checkpoint import Renaming, under
from vssm.models._family import Family, Variant
from vssm.models._layouts import BLOCK, MLLA_PYRAMID
from vssm.models._pyramid import Pyramid, make_stages
from vssm.nn import (
    Attention,
    Block,
    ConditionalPosition,
    InvertedDownsample,
    LeanMlp,
    NoncausalSSD,
    ResidualStem,
    initialise_linear_layers,
)
from vssm.ops import noncausal_ssd
from vssm.values import widened

_MIXER = (("conv2d", "conv"), ("to_qkv", "qkv"), ("to_out", "proj"))
_BLOCK = (("norm1", "norm"), ("attn", "mixer"), *under("attn", "mixer", _MIXER))


class VSSD(Pyramid):
    """VSSD.

    Args:
        dims, depths, heads: channels, number of blocks and heads of each stage; the last one attends.
        state, expansion: of the mixers of the other stages, see NoncausalSSD.
        mlp_ratio: hidden channels of the MLPs per channel.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> model = VSSD(dims=(16, 32), depths=(1, 1), heads=(2, 4), state=8, num_classes=10)
    >>> model(torch.randn(1, 3, 65, 40)).shape
    torch.Size([1, 10])
    """

    renaming = MLLA_PYRAMID + Renaming(under(*BLOCK, _BLOCK))
    weights_under = ("model_ema", "model", "state_dict")  # official: best where the averaged weights are
    first_conv = f"stem.{ResidualStem.first_conv}"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 4, 8, 4),
        heads: Sequence[int] = (2, 4, 8, 16),
        state: int = 64,
        expansion: float = 2.0,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}

        def block(stage: int, index: int, dim: int, drop_path: float) -> Block:
            if stage == len(dims) - 1:
                mixer = Attention(dim, heads[stage], qkv_bias=False, **dd)
            else:
                mixer = NoncausalSSD(dim, heads[stage], state, expansion, **dd)
            positions = {name: ConditionalPosition(dim, **dd) for name in ("position", "position2")}
            mlp = LeanMlp(dim, widened(dim, mlp_ratio, "mlp_ratio"), **dd)
            return Block(dim, mixer, mlp, drop_path, **positions, **dd)

        super().__init__(
            ResidualStem(in_chans, dims[0], **dd),
            make_stages(block, dims, depths, InvertedDownsample, drop_path_rate, **dd),
            nn.LayerNorm(dims[-1], **dd),
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            **dd,
        )
        initialise_linear_layers(self)


_DEEP = {"depths": (3, 4, 21, 5)}


def _variant(size: str, file: str, **arguments: Any) -> Variant:
    address = f"https://huggingface.co/YuhengSSS/VSSD/resolve/main/{file}.pth"
    return Variant(f"vssd_{size}", f"VSSD-{size[0].upper()}", arguments, address)


FAMILY = Family(
    title="VSSD",
    model=VSSD,
    paper="2407.18559",
    repository="https://github.com/YuHengsss/VSSD",
    commit="87b753b356dd0cd176a6356fdb82fa536d8435eb",
    license="unknown",
    owner="yuhengsss",
    strides=(4, 8, 16, 32),
    small={"vssd_tiny": {"dims": (16, 24, 32, 40), "depths": (1, 1, 1, 1), "heads": (2, 2, 4, 4), "state": 8}},
    variants=(
        _variant("micro", "vssd_micro_best", dims=(48, 96, 192, 384), depths=(2, 2, 8, 4), state=48),
        _variant("tiny", "vssd_tiny_best_ema"),
        _variant("small", "vssd_small_best_ema", **_DEEP),
        _variant("base", "vssd_base_best_ema", dims=(96, 192, 384, 768), heads=(3, 6, 12, 24), **_DEEP),
    ),
    parts=(
        ("non-causal state-space duality (NC-SSD)", "Mamba2.non_casual_linear_attn", noncausal_ssd),
        ("NC-SSD mixer", "Mamba2", NoncausalSSD),
        ("multi-head self-attention", "StandardAttention", Attention),
        ("VSSD block", "VMAMBA2Block", Block),
        ("local perception units", "cpe1, cpe2", ConditionalPosition),
        ("stem", "Stem", ResidualStem),
        ("VSSD", "VMAMBA2", VSSD),
    ),
    timed=("vssd_tiny",),
)
