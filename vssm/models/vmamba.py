"""VMamba: visual state space model.

A pyramid of four stages; every block scans its map along rows and columns, both ways, all four directions reading
the same map and their outputs summed. "vanilla" is the first version: a gate, 16 states, no MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from vssm.models._checkpoint import Renaming, under
from vssm.models._family import Family, Variant
from vssm.models._layouts import BLOCK, CONV_PYRAMID, PATCH_PYRAMID, SS2D_ROWS
from vssm.models._mixers import MixerMaker, make_mixer
from vssm.models._pyramid import Pyramid, make_stages
from vssm.nn import (
    SS2D,
    Block,
    ConvDownsample,
    ConvStem,
    LeanMlp,
    PatchMerging,
    PatchStem,
    StreamLayerNorm,
    initialise_linear_layers,
)
from vssm.scan import OrderFunction, cross
from vssm.values import widened

_BLOCK = under(*BLOCK, [("op", "mixer"), *under("op", "mixer", SS2D_ROWS)])


class VMamba(Pyramid):
    """VMamba.

    Args:
        dims, depths: channels and number of blocks of each stage.
        state, expansion, conv_bias, gated, mlp_ratio: of the blocks, see SS2D; no MLP for ratio 0.
        mixer: what makes each block's mixer from its channels, instead of SS2D: with `expansion` and `scan_order` if it
            takes them, and other arguments of its own. `timm.create_model` takes names too, see docs/mixers.md.
        stem, downsample: what makes them from numbers of channels: ConvStem and ConvDownsample, or PatchStem and
            PatchMerging.
        scan_order: a function (height, width) -> ScanOrder.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> model = VMamba(dims=(16, 32), depths=(1, 1), num_classes=10)
    >>> model(torch.randn(1, 3, 65, 40)).shape
    torch.Size([1, 10])
    """

    renaming = CONV_PYRAMID + Renaming(_BLOCK)
    first_conv = "stem.conv1"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 8, 2),
        state: int = 1,
        expansion: float = 1.0,
        conv_bias: bool = False,
        gated: bool = False,
        mixer: MixerMaker | None = None,
        mlp_ratio: float = 4.0,
        stem: Callable[..., ConvStem | PatchStem] = ConvStem,
        downsample: Callable[..., nn.Module] = ConvDownsample,
        scan_order: OrderFunction = cross,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}

        def block(stage: int, index: int, dim: int, drop_path: float) -> Block:
            made = make_mixer(mixer or own, dim, **dd, expansion=expansion, scan_order=scan_order)
            mlp = LeanMlp(dim, widened(dim, mlp_ratio, "mlp_ratio"), **dd) if mlp_ratio > 0 else None
            return Block(dim, made, mlp, drop_path, **dd)

        own = partial(SS2D, state=state, conv_bias=conv_bias, gated=gated)
        stages = make_stages(block, dims, depths, downsample, drop_path_rate, **dd)
        super().__init__(
            stem(in_chans, dims[0], **dd),
            stages,
            nn.LayerNorm(dims[-1], **dd),
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            **dd,
        )
        initialise_linear_layers(self)


class VanillaVMamba(VMamba):
    """The first VMamba, whose official weights are laid out in another way; arguments are those of VMamba."""

    renaming = PATCH_PYRAMID + Renaming(
        _BLOCK,
        older=(  # the official code renames these too
            ("patch_embed.proj", "patch_embed.0"),
            ("patch_embed.norm", "patch_embed.2"),
            ("layers.{i}.blocks.{j}.ln_1", "layers.{i}.blocks.{j}.norm"),
            ("layers.{i}.blocks.{j}.self_attention", "layers.{i}.blocks.{j}.op"),
            ("norm", "classifier.norm"),
            ("head", "classifier.head"),
        ),
    )
    first_conv = "stem.proj"


_FIRST_VERSION = {
    "state": 16,
    "expansion": 2.0,
    "conv_bias": True,
    "gated": True,
    "mlp_ratio": 0.0,
    "stem": partial(PatchStem, norm=StreamLayerNorm),
    "downsample": PatchMerging,
}
_BASE = (128, 256, 512, 1024)
_RELEASES = "https://github.com/MzeroMiko/VMamba/releases/download/"
_SMALL = {"dims": (16, 24, 32, 40), "depths": (1, 1, 2, 1)}


def _first_version(name: str, title: str, file: str, **arguments: Any) -> Variant:
    return Variant(name, title, _FIRST_VERSION | arguments, _RELEASES + file, model=VanillaVMamba)


FAMILY = Family(
    title="VMamba",
    model=VMamba,
    paper="2401.10166",
    repository="https://github.com/MzeroMiko/VMamba",
    commit="2ed52ead062a51a64521ed3871d52914bf532876",
    license="mit",
    owner="mzeromiko",
    strides=(4, 8, 16, 32),
    small={"vmamba_tiny": _SMALL, "vanilla_vmamba_tiny": _SMALL},
    variants=(
        Variant(
            "vmamba_tiny_s1l8",
            "VMamba-T",
            {"depths": (2, 2, 8, 2)},
            _RELEASES + "%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth",
            aliases=("vmamba_tiny",),
        ),
        Variant(
            "vmamba_tiny_s2l5",
            "VMamba-T, wider and shallower",
            {"depths": (2, 2, 5, 2), "expansion": 2.0},
            _RELEASES + "%23v2cls/vssm_tiny_0230_ckpt_epoch_262.pth",
        ),
        Variant(
            "vmamba_small_s2l15",
            "VMamba-S",
            {"depths": (2, 2, 15, 2), "expansion": 2.0},
            _RELEASES + "%23v2cls/vssm_small_0229_ckpt_epoch_222.pth",
            aliases=("vmamba_small",),
        ),
        Variant(
            "vmamba_small_s1l20",
            "VMamba-S, narrower and deeper",
            {"depths": (2, 2, 20, 2)},
            _RELEASES + "%23v2cls/vssm1_small_0229s_ckpt_epoch_240.pth",
        ),
        Variant(
            "vmamba_base_s2l15",
            "VMamba-B",
            {"dims": _BASE, "depths": (2, 2, 15, 2), "expansion": 2.0},
            _RELEASES + "%23v2cls/vssm_base_0229_ckpt_epoch_237.pth",
            aliases=("vmamba_base",),
        ),
        Variant(
            "vmamba_base_s1l20",
            "VMamba-B, narrower and deeper",
            {"dims": _BASE, "depths": (2, 2, 20, 2)},
            _RELEASES + "%23v2cls/vssm1_base_0229s_ckpt_epoch_225.pth",
        ),
        _first_version(
            "vanilla_vmamba_tiny",
            "the first VMamba-T",
            "%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth",
            depths=(2, 2, 9, 2),
        ),
        _first_version(
            "vanilla_vmamba_small",
            "the first VMamba-S",
            "%23v0cls/vssmsmall_dp03_ckpt_epoch_238.pth",
            depths=(2, 2, 27, 2),
        ),
        _first_version(
            "vanilla_vmamba_base",
            "the first VMamba-B",
            "%23v0cls/vssmbase_dp06_ckpt_epoch_241.pth",
            dims=_BASE,
            depths=(2, 2, 27, 2),
        ),
    ),
    parts=(
        ("2D-Selective-Scan (SS2D)", "SS2D", SS2D),
        ("cross-scan, cross-merge", "CrossScan, CrossMerge", cross),
        ("visual state-space (VSS) block", "VSSBlock", Block),
        ("VMamba", "VSSM", VMamba),
    ),
)
