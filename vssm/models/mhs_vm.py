"""MHS-VM: multi-head scanning, for the segmentation of medical images.

A pyramid of four stages, the encoder of a U-shaped segmentor (`vssm.mm.tasks.u_shape` has its decoder). Every block
cuts its channels into heads, and each head scans the map along routes of its own: snakes, diagonals, spirals, rows and
columns. The four outputs that a head has for a pixel are summed where they disagree: the sum is scaled by how far their
coefficient of variation exceeds a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.models._checkpoint import Renaming, under
from vssm.models._family import Family, Variant
from vssm.models._layouts import BLOCK, PATCH_PYRAMID, S6_ROWS
from vssm.models._pyramid import Pyramid, make_stages
from vssm.nn import (
    Block,
    BranchLayerNorm,
    ChannelsLastConv2d,
    GatedMixer,
    Linear,
    OrderTable,
    PatchMerging,
    PatchStem,
    SelectiveScan,
    StreamLayerNorm,
    convolved_silu,
    initialise_linear_layers,
)
from vssm.scan import (
    OrderFunction,
    ScanOrder,
    bidirectional,
    columns,
    diagonal_zigzag,
    flipped,
    spiral,
    stack,
    zigzag,
)


def two_spirals(height: int, width: int) -> ScanOrder:
    """Clockwise from the top left corner inwards, the same upside down, both ways."""
    down = spiral(height, width)
    up = (height - 1 - down.table // width) * width + down.table % width
    return stack(down, ScanOrder(up, down.tokens))


def rows_and_columns(height: int, width: int) -> ScanOrder:
    """The directions of `cross` in another order: rows, rows backwards, columns, columns backwards."""
    by_columns = columns(height, width)
    return stack(bidirectional(height, width), by_columns, flipped(by_columns))


def fuse_by_variation(directions: Tensor, shared: Tensor, threshold: float) -> Tensor:
    """The sum of the directions, times how far their coefficient of variation exceeds a threshold (the paper's GFU).

    Where the directions agree on a channel of a pixel, nothing is passed on. The coefficient is the deviation over the
    mean, both of the directions' values above the least of them, in float32 at least.

    Args:
        directions: (batch, tokens, directions, channels), of at least two directions.
        shared: (batch, tokens, channels), to be added to each of them. On it the coefficient does not depend; added
            before, it would take the digits of what does.
        threshold: 0 passes on every disagreement.

    Returns:
        (batch, tokens, channels).

    >>> fuse_by_variation(torch.tensor([1.0, 1.0, 3.0]).view(1, 1, 3, 1), torch.zeros(1, 1, 1), threshold=0.0)
    tensor([[[8.6601]]])
    """
    values = directions.to(torch.promote_types(directions.dtype, torch.float32))
    above = (values - values.amin(2, keepdim=True)).mean(2)
    variation = values.std(2) / (above + 1e-5)
    total = values.sum(2) + values.shape[2] * shared
    return (total * F.relu(variation - threshold)).to(directions.dtype)


@register_notrace_module
class ScanHead(nn.Module):
    """A scan along the routes of one head, its directions fused by their variation; (batch, h, w, channels) in and out.

    Args:
        channels: of the head.
        state: size of the state of each channel.
        threshold: of the coefficient of variation.
        scan_order: the routes, a function (height, width) -> ScanOrder.

    Raises:
        ValueError: an order of one direction, which nothing can disagree with.
    """

    def __init__(
        self,
        channels: int,
        state: int,
        threshold: float,
        scan_order: OrderFunction,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        directions, rank = scan_order(2, 2).directions, math.ceil(channels / 16)
        if directions < 2:
            raise ValueError(
                "the scan order has one direction, and a head of MHS-VM compares the outputs of several: choose one "
                'with two or more, such as "bidirectional" for "raster"'
            )
        self.threshold = threshold
        self.order_table = OrderTable(scan_order)
        self.scan = SelectiveScan(channels, directions, state, rank, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        order = self.order_table(x.shape[1], x.shape[2], x.device)
        tokens, skip = x.flatten(1, 2), self.scan.D
        shared = skip.mean(0)
        return fuse_by_variation(self.scan(tokens, order, skip=skip - shared), shared * tokens, self.threshold).view_as(
            x
        )


@register_notrace_module
class MultiHeadScan(nn.Module):
    """Projection into heads, a scan in each, norm of them all, projection back: (batch, height, width, dim) in and out.

    Args:
        dim: channels; a head has dim // heads of them.
        state, threshold: of the heads, see ScanHead.
        routes: the scan order of each head.

    >>> MultiHeadScan(10, 4, 0.4, (zigzag, two_spirals, rows_and_columns))(torch.randn(1, 3, 5, 10)).shape
    torch.Size([1, 3, 5, 10])
    """

    def __init__(
        self,
        dim: int,
        state: int,
        threshold: float,
        routes: Sequence[OrderFunction],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.channels = dim // len(routes)
        inner = self.channels * len(routes)
        self.in_proj = Linear(dim, inner, bias=False, **dd)
        self.heads = nn.ModuleList(ScanHead(self.channels, state, threshold, order, **dd) for order in routes)
        self.norm = BranchLayerNorm(inner, **dd)
        self.out_proj = Linear(inner, dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.in_proj(x).split(self.channels, dim=-1)
        fused = [head(part.contiguous()) for head, part in zip(self.heads, parts, strict=True)]
        return self.out_proj(self.norm(torch.cat(fused, dim=-1)))


@register_notrace_module
class MultiHeadMixer(GatedMixer):
    """Depthwise convolution, SiLU, multi-head scan and norm, gated by a second projection; nothing follows the gate.

    Args:
        dim: channels, inside as outside.
        state, threshold, routes: see MultiHeadScan.
    """

    gated = True

    def __init__(
        self,
        dim: int,
        state: int,
        threshold: float,
        routes: Sequence[OrderFunction],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.in_proj = Linear(dim, 2 * dim, bias=False, **dd)
        self.conv = ChannelsLastConv2d(dim, dim, kernel_size=3, padding=1, groups=dim, **dd)
        self.scan = MultiHeadScan(dim, state, threshold, routes, **dd)
        self.norm = BranchLayerNorm(dim, **dd)
        self.out_proj = nn.Identity()

    def mix(self, x: Tensor) -> Tensor:
        return self.norm(self.scan(convolved_silu(self.conv, x)))


HEADS = (zigzag, diagonal_zigzag, two_spirals, rows_and_columns)
_HEAD_NAMES = "CXSZ"

_SCAN = (
    *(
        (f"scanhead_{name}.scanning.seq2seq_engine.{theirs}", f"heads.{i}.scan.{ours}", *dims)
        for i, name in enumerate(_HEAD_NAMES)
        for theirs, ours, *dims in S6_ROWS
    ),
    ("x_ssproj", "in_proj"),
    ("cat_norm", "norm"),
    ("y_proj", "out_proj"),
)
_MIXER = (("mhs", "scan"), *under("mhs", "scan", _SCAN), ("conv2d", "conv"), ("out_norm", "norm"))
_BLOCK = (("ln_1", "norm"), ("self_attention", "mixer"), *under("self_attention", "mixer", _MIXER))
# One tensor of the official model under two names, of which the second is the one that it reads last.
_TWICE = (
    ("x_ssproj_W", "x_ssproj.weight"),
    *((f"scanhead_{name}.mambaeng", f"scanhead_{name}.scanning.seq2seq_engine") for name in _HEAD_NAMES),
)


class MHSVM(Pyramid):
    """The encoder of MHS-VM, with a norm and a classifier, which the official network does not have.

    Args:
        dims, depths: channels and number of blocks of each stage.
        state: size of the state of each channel.
        threshold: how much the directions of a head must disagree to be passed on, see `fuse_by_variation`.
        routes: of each head, functions (height, width) -> ScanOrder; as many as there are heads.
        scan_order: one for all heads instead.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> model = MHSVM(dims=(16, 32), depths=(1, 1), num_classes=10)
    >>> model(torch.randn(1, 3, 65, 40)).shape
    torch.Size([1, 10])
    """

    renaming = PATCH_PYRAMID + Renaming(
        rows=(
            ("patch_embed.proj", "stem.proj"),
            ("patch_embed.norm", "stem.norm"),
            *under(*BLOCK, _BLOCK),
        ),
        twins=under(BLOCK[0], BLOCK[0], under("self_attention.mhs", "self_attention.mhs", _TWICE)),
    )
    first_conv = "stem.proj"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 2, 2),
        state: int = 16,
        threshold: float = 0.4,
        routes: Sequence[OrderFunction] = HEADS,
        scan_order: OrderFunction | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        routes = routes if scan_order is None else (scan_order,) * len(routes)

        def block(stage: int, index: int, dim: int, drop_path: float) -> Block:
            return Block(dim, MultiHeadMixer(dim, state, threshold, routes, **dd), None, drop_path, **dd)

        # official: a map of odd size loses its last row or column before it is merged; here: zeros fill it up, as in
        # every other pyramid, because nothing of an image should go unread.
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


# Maps of few channels hold small values, whose variation would stay below the threshold.
_SMALL = {"dims": (8, 16, 16, 16), "depths": (1, 1, 1, 1), "state": 4, "threshold": 0.0, "routes": HEADS[2:]}

FAMILY = Family(
    title="MHS-VM",
    model=MHSVM,
    paper="2406.05992",
    repository="https://github.com/PixDeep/MHS-VM",
    commit="be64b6fa4970a7f57c2e9677645219ffae6c1da5",
    license="apache-2.0",
    owner="pixdeep",
    strides=(4, 8, 16, 32),
    small={"mhs_vm_4h": _SMALL},
    variants=(
        Variant("mhs_vm_4h", "MHS-VM with four heads"),
        Variant("mhs_vm_3h", "MHS-VM with three heads, without rows and columns", {"routes": HEADS[:3]}),
    ),
    parts=(
        ("multi-head 2D selective scan module (MHS-SSM)", "MHS", MultiHeadScan),
        ("scan head", "ScanHead", ScanHead),
        ("scan route filtering, gated by the coefficient of variation", "GFU", fuse_by_variation),
        ("snakes", "scan head C", zigzag),
        ("diagonals", "scan head X", diagonal_zigzag),
        ("spirals", "scan head S", two_spirals),
        ("rows and columns", "scan head Z", rows_and_columns),
        ("visual state-space (VSS) block", "VSSBlock", Block),
        ("the encoder of MHS-VM", "VSSM", MHSVM),
    ),
)
