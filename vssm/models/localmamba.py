"""LocalMamba: visual state space model with windowed selective scan.

Vim and VMamba, whose blocks scan rows, columns and windows of 2 x 2 and 7 x 7 tokens, forwards or backwards: four of
these eight directions, which a search chose for each block. A gate weighs the channels of each direction before they
are summed. LocalVim turns its tokens by their positions in front of every block, or has a class token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vssm.models._checkpoint import Renaming, under
from vssm.models._family import Family, Variant
from vssm.models._layouts import BLOCK, PATCH_PYRAMID, SS2D_ROWS
from vssm.models._local_mixers import LocalSS2D, LocalVimMixer
from vssm.models._plain import PlainWithPosition, with_norm_biases
from vssm.models._pyramid import Pyramid, make_stages
from vssm.models._searched_orders import LOCAL_VIM, LOCAL_VMAMBA_SMALL, LOCAL_VMAMBA_TINY, ROWS_AND_WINDOWS
from vssm.nn import (
    Block,
    Blocks,
    BranchLayerNorm,
    BranchRMSNorm,
    ChannelGate,
    PatchMerging,
    PatchStem,
    RotaryPosition,
    StreamLayerNorm,
    drop_path_rates,
    initialise_linear_layers,
)
from vssm.scan import OrderFunction, local, with_class_token


def _of_blocks(
    scan_order: OrderFunction | None, scan_orders: Sequence[OrderFunction], blocks: int
) -> Sequence[OrderFunction]:
    if scan_order is not None:
        return [scan_order] * blocks
    if len(scan_orders) < blocks:
        raise ValueError(
            f"scan_orders has {len(scan_orders)} entries and there are {blocks} blocks; expected one for each: pass as "
            f"many, or one scan_order for all blocks"
        )
    return scan_orders[:blocks]


# The official names of the gate's layers.
_GATE = (
    ("norm", "channel_gate.norm"),
    ("global_reduce", "channel_gate.reduce"),
    ("channel_select", "channel_gate.expand"),
)


def _each(name: str) -> tuple[str, ...]:
    """Official: a tensor for each of the four directions; here: stacked."""
    return tuple(name.format(direction) for direction in range(4))


_MIXER = (
    (_each("A_log_{}"), "scan.A_log"),
    (_each("D_{}"), "scan.D"),
    (_each("x_proj_{}.weight"), "scan.x_proj"),
    (_each("dt_proj_{}.weight"), "scan.dt_proj"),
    (_each("dt_proj_{}.bias"), "scan.dt_bias"),
    (_each("conv1d_{}.weight"), "conv_weight", (0, (), 1)),
    (_each("conv1d_{}.bias"), "conv_bias"),
    *((f"attn.{theirs}", ours) for theirs, ours in _GATE),
)


class LocalVim(PlainWithPosition):
    """LocalVim.

    Args:
        img_size: pixels, one number or (height, width), of the images that the position embedding is stored for; any
            other size is resized to in `forward`.
        patch_size: pixels.
        embed_dim, depth, state: size of the model.
        scan_orders: of the patches, for each block a function (height, width) -> ScanOrder; more than blocks are not
            used.
        scan_order: one for all blocks instead.
        official_columns: on grids that are not square, put the outputs of scans of columns where the official code
            puts them: in the wrong places.
        layer_norm: norms with mean and bias, as in the authors' detectors and segmentors; a classifier's weights fit.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> from vssm.scan import windows
    >>> model = LocalVim(embed_dim=32, depth=2, scan_order=windows(2), num_classes=10)
    >>> model(torch.randn(1, 3, 96, 130)).shape
    torch.Size([1, 10])
    """

    renaming = Renaming(
        rows=(
            ("layers.{i}", "blocks.{i}"),
            *under("layers.{i}.mixer", "blocks.{i}.mixer", _MIXER),
            ("norm_f", "norm"),
        ),
        dropped=("rope.",),  # cosines and sines, which are computed here
    )
    first_conv = f"patch_embed.{PatchStem.first_conv}"
    antialias = False  # as officially; so are the tables of rotary positions

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 192,
        depth: int = 20,
        state: int = 16,
        scan_orders: Sequence[OrderFunction] = LOCAL_VIM,
        scan_order: OrderFunction | None = None,
        official_columns: bool = False,
        layer_norm: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        if official_columns and self.has_class_token:
            raise ValueError("official_columns: with a class token the official code takes square images alone")
        super().__init__(embed_dim, patch_size, depth, in_chans, num_classes, global_pool, drop_rate, **dd)
        self.patch_embed = PatchStem(in_chans, embed_dim, patch_size, padding=None, **dd)
        self.add_position(img_size, **dd)
        norm = BranchLayerNorm if layer_norm else BranchRMSNorm
        rates = drop_path_rates(drop_path_rate, depth)
        self.blocks = Blocks(
            *(
                Block(
                    embed_dim,
                    LocalVimMixer(embed_dim, state, self.of_tokens(order), official_columns, **dd),
                    drop_path=rate,
                    norm=norm,
                    position=self.make_position(embed_dim),
                    **dd,
                )
                for order, rate in zip(_of_blocks(scan_order, scan_orders, depth), rates, strict=True)
            )
        )
        self.norm = norm(embed_dim, **dd)
        self._init_weights()

    def resize_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return with_norm_biases(super().resize_weights(state), self)

    def of_tokens(self, order: OrderFunction) -> OrderFunction:
        """The order of all tokens from that of the patches."""
        return order

    def make_position(self, channels: int) -> nn.Module | None:
        """What turns the tokens in front of every block."""
        return RotaryPosition(channels, grid=14)

    @torch.no_grad()
    def _init_weights(self) -> None:
        """The official initialisation: Mamba's step sizes are lost to that of linear layers, and so they are here."""
        initialise_linear_layers(self, scans=True)
        nn.init.normal_(self.pos_embed, std=0.02)
        if self.has_class_token:
            nn.init.zeros_(self.cls_token)
        for block in self.blocks:
            block.mixer.out_proj.reset_parameters()
            block.mixer.out_proj.weight.div_(math.sqrt(len(self.blocks)))


class LocalVimWithClassToken(LocalVim):
    """LocalVim with a class token in the middle, met halfway by every direction, and no rotary positions.

    Arguments are those of LocalVim, but for official_columns: officially it takes square images of one size alone.
    """

    has_class_token = True

    def of_tokens(self, order: OrderFunction) -> OrderFunction:
        return with_class_token(order)

    def make_position(self, channels: int) -> nn.Module | None:
        return None


class LocalVMamba(Pyramid):
    """LocalVMamba.

    Args:
        dims, depths: channels and number of blocks of each stage.
        state, expansion: of the blocks, see SS2D.
        scan_orders: for each block, from the first stage to the last, a function (height, width) -> ScanOrder; more
            than blocks are not used.
        scan_order: one for all blocks instead.
        official_columns: as LocalVim's.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> from vssm.scan import windows
    >>> model = LocalVMamba(dims=(16, 32), depths=(1, 1), scan_order=windows(2), num_classes=10)
    >>> model(torch.randn(1, 3, 65, 40)).shape
    torch.Size([1, 10])
    """

    renaming = PATCH_PYRAMID + Renaming(
        under(
            *BLOCK,
            [
                ("op", "mixer"),
                *under("op", "mixer", SS2D_ROWS),
                *under("op.multi_scan.attn", "mixer", _GATE),
            ],
        )
    )
    first_conv = "stem.proj"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 9, 2),
        state: int = 16,
        expansion: float = 2.0,
        scan_orders: Sequence[OrderFunction] = LOCAL_VMAMBA_TINY,
        scan_order: OrderFunction | None = None,
        official_columns: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        orders = iter(_of_blocks(scan_order, scan_orders, sum(depths)))

        def block(stage: int, index: int, dim: int, drop_path: float) -> Block:
            mixer = LocalSS2D(dim, state, expansion, next(orders), official_columns, **dd)
            return Block(dim, mixer, drop_path=drop_path, **dd)

        stages = make_stages(block, dims, depths, PatchMerging, drop_path_rate, **dd)
        super().__init__(
            PatchStem(in_chans, dims[0], norm=StreamLayerNorm, **dd),
            stages,
            nn.LayerNorm(dims[-1], **dd),
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            **dd,
        )
        initialise_linear_layers(self)


_RELEASE = "https://github.com/hunto/LocalMamba/releases/download/v1.0.0/"
_SMALL = {"embed_dim": 16, "depth": 3, "img_size": 64}


def _vim(name: str, title: str, file: str, **arguments: Any) -> Variant:
    return Variant(name, title, arguments, _RELEASE + file, cfg={"pool_size": (14, 14)}, strides=(16,))


FAMILY = Family(
    title="LocalMamba",
    model=LocalVim,
    paper="2403.09338",
    repository="https://github.com/hunto/LocalMamba",
    commit="75e5d1f007c303509c77d179df38f7fa19c0d05c",
    license="apache-2.0",
    owner="hunto",
    strides=(4, 8, 16, 32),
    small={
        "local_vim_tiny": _SMALL,
        "local_vim_tiny_middle_cls_token": _SMALL,
        "local_vmamba_tiny": {"dims": (16, 24, 32, 40), "depths": (1, 1, 1, 1)},
    },
    variants=(
        _vim("local_vim_tiny", "LocalVim-T", "local_vim_tiny.ckpt"),
        Variant(
            "local_vim_tiny_middle_cls_token",
            "LocalVim-T with a class token",
            {"global_pool": "token"},
            _RELEASE + "local_vim_tiny_middle_cls_token.ckpt",
            cfg={"pool_size": (14, 14)},
            model=LocalVimWithClassToken,
            strides=(16,),
        ),
        # official: local_vim_small is defined twice, with these directions and, later and so in effect, without a
        # search. Both fit the released file; which one it was trained with is published nowhere.
        _vim(
            "local_vim_small",
            "LocalVim-S",
            "local_vim_small.ckpt",
            embed_dim=384,
            scan_orders=(ROWS_AND_WINDOWS,) * 20,
        ),
        _vim("local_vim_small_searched", "LocalVim-S, searched directions", "local_vim_small.ckpt", embed_dim=384),
        Variant("local_vmamba_tiny", "LocalVMamba-T", model=LocalVMamba),
        Variant(
            "local_vmamba_small",
            "LocalVMamba-S",
            {"depths": (2, 2, 27, 2), "scan_orders": LOCAL_VMAMBA_SMALL},
            _RELEASE + "local_vssm_small.ckpt",
            model=LocalVMamba,
        ),
    ),
    parts=(
        ("local scan", "local_scan", local(7)),
        ("spatial and channel attention (SCAttn)", "BiAttn", ChannelGate),
        ("LocalVim block's mixer", "MultiMamba", LocalVimMixer),
        ("LocalVMamba block's mixer", "SS2D, MultiScan", LocalSS2D),
        ("LocalVim", "VisionMamba", LocalVim),
        ("LocalVMamba", "VSSM", LocalVMamba),
    ),
    timed=("local_vim_tiny", "local_vmamba_tiny"),
)
