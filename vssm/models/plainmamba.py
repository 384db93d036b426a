"""PlainMamba: improving non-hierarchical Mamba in visual recognition.

One grid of tokens from the first block to the last, no class token. Every block scans it along four snakes, which pass
only between neighbours on the grid, with one set of parameters; what a step reads also says which way it came.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.models._checkpoint import under
from vssm.models._family import Family, Variant
from vssm.models._layouts import MAMBA_SCAN_ROWS, in_mmpretrain
from vssm.models._plain import PlainWithPosition
from vssm.nn import (
    BatchNormStem,
    Block,
    Blocks,
    BranchLayerNorm,
    ChannelsLastConv2d,
    ConvNormAct,
    Linear,
    OrderTable,
    PaddedPatchConv,
    TwiceBiasedScan,
    convolved_silu,
    drop_path_rates,
    initialise_linear_layers,
)
from vssm.ops import ScanTable, sum_gate
from vssm.scan import OrderFunction, ScanOrder, zigzag

# What a step may be: none (the first, or a jump), to the right, to the left, up, down.
MOVES = 5


@dataclass(frozen=True)
class WholeWalks:
    """An order without its empty steps, of which PlainMamba's steps have none.

    Raises:
        ValueError: the order does not visit every token once in every direction.
    """

    order: OrderFunction

    def __call__(self, height: int, width: int) -> ScanOrder:
        made = self.order(height, width)
        if not bool((made.visits == 1).all()):
            raise ValueError("the scan order leaves tokens out or visits some twice; expected each once per direction")
        return ScanOrder(made.table[made.table >= 0].view(made.directions, made.tokens), made.tokens)


@dataclass(frozen=True)
class Moves:
    """The move by which each direction of an order reaches each token, as a number below MOVES, (directions, tokens).

    >>> Moves(zigzag)(2, 2).table[0]  # the walk is right, down, left
    tensor([0, 1, 2, 4], dtype=torch.int32)
    """

    order: OrderFunction

    def __call__(self, height: int, width: int) -> ScanOrder:
        walk = WholeWalks(self.order)(height, width).table
        down, right = ((part[:, 1:] - part[:, :-1]) for part in (walk // width, walk % width))
        moves = torch.zeros_like(walk)
        for number, (rows, columns) in enumerate(((0, 1), (0, -1), (-1, 0), (1, 0)), start=1):
            moves[:, 1:][(down == rows) & (right == columns)] = number
        return ScanOrder(torch.empty_like(moves).scatter_(1, walk.long(), moves), max(MOVES, height * width))


@dataclass(frozen=True)
class StepOfToken:
    """The step at which each direction visits each token, (directions, tokens): an order's inverse."""

    order: OrderFunction

    def __call__(self, height: int, width: int) -> ScanOrder:
        made = WholeWalks(self.order)(height, width)
        return ScanOrder(made.table.argsort(1), made.tokens)


class DirectionAwareScan(TwiceBiasedScan):
    """A scan with the same parameters in all directions, whose B also depends on the move that led to a token.

    Args:
        channels, directions, state, rank: as in SelectiveScan.

    >>> scan = DirectionAwareScan(channels=8, directions=4, state=4, rank=1)
    >>> orders = zigzag(3, 5), StepOfToken(zigzag)(3, 5), Moves(zigzag)(3, 5)
    >>> scan(torch.randn(2, 15, 8), *(ScanTable.of(order.table, 15, torch.device("cpu")) for order in orders)).shape
    torch.Size([2, 15, 4, 8])
    """

    def __init__(
        self,
        channels: int,
        directions: int,
        state: int,
        rank: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(channels, directions, state, rank, shared=True, device=device, dtype=dtype)
        self.B_of_move = nn.Parameter(torch.empty(MOVES, state, device=device, dtype=dtype))
        nn.init.normal_(self.B_of_move, std=0.02)

    def forward(self, tokens: Tensor, order: ScanTable, step_of_token: ScanTable, moves: ScanTable) -> Tensor:
        """(batch, tokens, channels) -> (batch, tokens, directions, channels)."""
        # official: a direction meets the tokens in its own order, but their step sizes, B and C in raster order: at
        # step t it reads token order[t], with those of token t. Here: the same, for the weights' sake. What a token
        # selects is a tenth as wide as the token, so it is what moves.
        weight, *_ = self.read(tokens)  # rows of B, of C and of the step size
        selected = F.linear(tokens, weight)[:, step_of_token.table.T.long()]
        B, C, delta = selected.split_with_sizes([self.state, self.state, self.rank], -1)
        B = B + self.B_of_move[moves.table.T.long()]
        return self._scan(tokens, delta, B, C, self._each(self.D), order=order)


@register_notrace_module
class PlainMambaMixer(nn.Module):
    """Projection, 7 x 7 depthwise convolution, SiLU, scan along the snakes, gate, projection back.

    Args:
        dim: channels of the tokens; twice as many inside.
        state: size of the state-space model's state.
        scan_order: a function (height, width) -> ScanOrder that visits every token once in every direction.

    >>> PlainMambaMixer(8)(torch.randn(2, 15, 8), height=3, width=5).shape
    torch.Size([2, 15, 8])
    """

    def __init__(
        self,
        dim: int,
        state: int = 16,
        scan_order: OrderFunction = zigzag,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        inner = 2 * dim
        self.order_tables = [OrderTable(make(scan_order)) for make in (WholeWalks, StepOfToken, Moves)]
        self.in_proj = Linear(dim, 2 * inner, **dd)
        self.conv = ChannelsLastConv2d(inner, inner, kernel_size=7, padding=3, groups=inner, **dd)
        self.scan = DirectionAwareScan(inner, scan_order(2, 2).directions, state, math.ceil(dim / 16), **dd)
        self.out_proj = Linear(inner, dim, **dd)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(batch, tokens, dim) in and out; `height` and `width` of the grid."""
        tables = [table(height, width, tokens.device) for table in self.order_tables]
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        x = convolved_silu(self.conv, x.unflatten(1, (height, width))).flatten(1, 2)
        return self.out_proj(sum_gate(self.scan(x, *tables), z))


class ConvBlock(Block):
    """A block, and after it a depthwise 3 x 3 convolution with batch norm and GELU, without a residual.

    >>> ConvBlock(8, PlainMambaMixer(8))(torch.randn(2, 15, 8), 3, 5).shape
    torch.Size([2, 15, 8])
    """

    def __init__(self, dim: int, mixer: nn.Module, drop_path: float = 0.0, **dd: Any):
        super().__init__(dim, mixer, drop_path=drop_path, **dd)
        self.local = ConvNormAct(dim, dim, kernel_size=3, groups=dim, act_layer=nn.GELU, **dd)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = super().forward(x, height, width)
        maps = x.unflatten(1, (height, width)).permute(0, 3, 1, 2).to(self.local.conv.weight.dtype)
        return self.local(maps).permute(0, 2, 3, 1).flatten(1, 2).to(x.dtype)


class PlainMamba(PlainWithPosition):
    """PlainMamba.

    Args:
        img_size: pixels, one number or (height, width), of the images that the position embedding is stored for; any
            other size is resized to in `forward`.
        embed_dim, depth, state: size of the model.
        stem_depth: 3 x 3 convolutions of the stem, after its 7 x 7 one.
        conv_blocks: of the first blocks, how many end in a depthwise convolution.
        scan_order: see PlainMambaMixer.
        normal_init: start every linear layer from normal weights of deviation 0.02 and zero biases, those of the step
            sizes among them, and the classifier from a deviation of 0.01. The official class does not, but the recipe
            of all published weights does.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> model = PlainMamba(embed_dim=32, depth=2, num_classes=10)
    >>> model(torch.randn(1, 3, 96, 130)).shape
    torch.Size([1, 10])
    """

    renaming = in_mmpretrain(
        (
            ("pos_embed", "pos_embed"),
            ("patch_embed.stem.0", "patch_embed.layers.0.conv"),
            ("patch_embed.stem.1", "patch_embed.layers.0.bn"),
            ("patch_embed.convs.0", "patch_embed.layers.1.conv"),
            ("patch_embed.convs.1", "patch_embed.layers.1.bn"),
            ("patch_embed.convs.3", "patch_embed.layers.2.conv"),
            ("patch_embed.convs.4", "patch_embed.layers.2.bn"),
            ("patch_embed.projection", "patch_embed.projection"),
            ("layers.{i}", "blocks.{i}"),
            ("layers.{i}.dw.0", "blocks.{i}.local.conv"),
            ("layers.{i}.dw.1", "blocks.{i}.local.bn"),
            ("layers.{i}.mamba", "blocks.{i}.mixer"),
            *under("layers.{i}.mamba", "blocks.{i}.mixer", MAMBA_SCAN_ROWS),
            ("layers.{i}.mamba.direction_Bs", "blocks.{i}.mixer.scan.B_of_move"),
            ("layers.{i}.mamba.conv2d", "blocks.{i}.mixer.conv"),
            ("ln1", "norm"),
        )
    )
    first_conv = f"patch_embed.{BatchNormStem.first_conv}"
    antialias = False

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 192,
        depth: int = 24,
        state: int = 16,
        stem_depth: int = 1,
        conv_blocks: int = 0,
        scan_order: OrderFunction = zigzag,
        normal_init: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(embed_dim, 16, depth, in_chans, num_classes, global_pool, drop_rate, **dd)
        layers = [(64, 7, 2), *[(64, 3, 1)] * stem_depth]
        projection = PaddedPatchConv(64, embed_dim, kernel_size=8, stride=8, **dd)
        self.patch_embed = BatchNormStem(in_chans, layers, projection, **dd)
        self.add_position(img_size, **dd)
        rates = drop_path_rates(drop_path_rate, depth)
        self.blocks = Blocks(
            *(
                (ConvBlock if i < conv_blocks else Block)(
                    embed_dim, PlainMambaMixer(embed_dim, state, scan_order, **dd), drop_path=rate, **dd
                )
                for i, rate in enumerate(rates)
            )
        )
        self.norm = BranchLayerNorm(embed_dim, eps=1e-6, **dd)
        nn.init.normal_(self.pos_embed.detach(), std=0.02)
        if normal_init:
            initialise_linear_layers(self, scans=True)
            if num_classes > 0:
                nn.init.normal_(self.head.weight, std=0.01)

    def no_weight_decay(self) -> set[str]:
        # official: none for norms, biases and, by the recipe's keys, these.
        return {"pos_embed"} | self.parameters_ending("A_log", "D", "B_of_move", "dt_bias")


def _variant(name: str, title: str, **arguments: Any) -> Variant:
    file = f"https://huggingface.co/ChenhongyiYang/PlainMamba/resolve/main/{name[-2:]}.pth"
    return Variant(name, title, arguments, file)


FAMILY = Family(
    title="PlainMamba",
    model=PlainMamba,
    paper="2403.17695",
    repository="https://github.com/ChenhongyiYang/PlainMamba",
    commit="0975a1d0d8bca50e7b85cf15e53de2a383ae12a0",
    license="apache-2.0",
    owner="chenhongyiyang",
    strides=(16,),
    cfg={"pool_size": (14, 14)},
    small={"plainmamba_l1": {"embed_dim": 32, "depth": 2, "img_size": 64}},
    variants=(
        _variant("plainmamba_l1", "PlainMamba-L1", embed_dim=192, depth=24, stem_depth=1, conv_blocks=1),
        _variant("plainmamba_l2", "PlainMamba-L2", embed_dim=384, depth=24, stem_depth=2),
        _variant("plainmamba_l3", "PlainMamba-L3", embed_dim=448, depth=36, stem_depth=2),
    ),
    parts=(
        ("continuous 2D scanning", "the orders o1 to o4", zigzag),
        ("direction-aware updating", "direction_Bs", DirectionAwareScan),
        ("PlainMamba block", "PlainMambaLayer", Block),
        ("convolutional tokenizer", "ConvPatchEmbed", BatchNormStem),
        ("PlainMamba", "PlainMamba", PlainMamba),
    ),
    timed=("plainmamba_l2",),
)
