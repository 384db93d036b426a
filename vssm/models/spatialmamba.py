"""Spatial-Mamba: one raster scan, whose states are then fused with those of their neighbours on the map.

A pyramid of four stages. Where other families scan in several directions, every block here scans once, and a
structure-aware fusion, three dilated depthwise convolutions of the states themselves, lets each state see those around
it, below and to the right too, before C reads it out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vssm.models._checkpoint import Renaming, under
from vssm.models._family import Family, Variant
from vssm.models._layouts import BLOCK, MLLA_PYRAMID
from vssm.models._pyramid import Pyramid, make_stages
from vssm.nn import (
    Block,
    BranchLayerNorm,
    ChannelsLastConv2d,
    ConditionalPosition,
    GatedMixer,
    InvertedDownsample,
    LeanMlp,
    Linear,
    OrderTable,
    ResidualStem,
    SelectiveScan,
    convolved_silu,
    initialise_linear_layers,
)
from vssm.ops import readout, state_fusion
from vssm.scan import OrderFunction, raster
from vssm.values import widened


class StateFusion(nn.Module):
    """A weighted sum of three 3 x 3 depthwise convolutions, of dilation 1, 3 and 5, that repeat the map's border.

    Computed in float32, as states are. The parameters start at one: a sum over 27 neighbours.

    Args:
        channels: of the map of states.

    >>> StateFusion(4)(torch.randn(2, 3, 5, 4)).shape
    torch.Size([2, 3, 5, 4])
    """

    def __init__(self, channels: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.kernels = nn.ParameterList(nn.Parameter(torch.ones(channels, 1, 3, 3, **dd)) for _ in range(3))
        self.alpha = nn.Parameter(torch.ones(3, **dd))

    def forward(self, states: Tensor) -> Tensor:
        """(batch, height, width, channels) in and out, float32."""
        # official: in evaluation the three kernels are merged into one, at the first image, and never again. Here: the
        # same mathematics with the parameters of the moment.
        weight = self.alpha[:, None, None, None] * torch.cat(list(self.kernels), 1).transpose(0, 1)
        return state_fusion(states, weight)


@register_notrace_module
class StructureAwareSSM(GatedMixer):
    """Projection, depthwise convolution, SiLU, the states of a scan, their fusion, readout, norm, gate, projection.

    Args:
        dim: channels of the map; `expansion` times as many inside.
        expansion: inner channels per outer channel.
        scan_order: a function (height, width) -> ScanOrder; the states of several directions are fused each with its
            like, and what is read out of them is summed.

    >>> StructureAwareSSM(8)(torch.randn(2, 3, 5, 8)).shape
    torch.Size([2, 3, 5, 8])
    """

    gated = True

    def __init__(
        self,
        dim: int,
        expansion: float = 2.0,
        scan_order: OrderFunction = raster,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        inner = widened(dim, expansion, "expansion")
        self.order_table = OrderTable(scan_order)
        self.in_proj = Linear(dim, 2 * inner, bias=False, **dd)
        self.conv = ChannelsLastConv2d(inner, inner, kernel_size=3, padding=1, groups=inner, **dd)
        self.scan = SelectiveScan(inner, scan_order(2, 2).directions, state=1, rank=math.ceil(dim / 16), **dd)
        self.fusion = StateFusion(inner, **dd)
        self.norm = BranchLayerNorm(inner, **dd)
        self.out_proj = Linear(inner, dim, bias=False, **dd)

    def mix(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        x = convolved_silu(self.conv, x)
        tokens = x.flatten(1, 2)
        states, C = self.scan.states(tokens, self.order_table(height, width, x.device))
        states = states[..., 0].transpose(1, 2)  # a map for each direction
        fused = self.fusion(states.flatten(0, 1).unflatten(1, (height, width))).view(states.shape)
        return self.norm(readout(fused, C[..., 0], self.scan.D, tokens)).view_as(x)


_MIXER = (
    ("x_proj_weight", "scan.x_proj", ((0, 1), 2)),
    ("dt_projs_weight", "scan.dt_proj", ((0, 1), 2)),
    ("dt_projs_bias", "scan.dt_bias", ((0, 1),)),
    ("A_logs", "scan.A_log", ((0, 1), 2)),
    ("Ds", "scan.D", ((0, 1),)),
    ("conv2d", "conv"),
    ("state_fusion", "fusion"),
    ("state_fusion.kernel_3", "fusion.kernels.0"),
    ("state_fusion.kernel_3_1", "fusion.kernels.1"),
    ("state_fusion.kernel_3_2", "fusion.kernels.2"),
    ("out_norm", "norm"),
)
_BLOCK = (("ln_1", "norm"), ("ln_2", "norm2"), ("self_attention", "mixer"), *under("self_attention", "mixer", _MIXER))


class SpatialMamba(Pyramid):
    """Spatial-Mamba.

    Args:
        dims, depths: channels and number of blocks of each stage.
        expansion, scan_order: of the mixers, see StructureAwareSSM.
        mlp_ratio: hidden channels of the MLPs per channel.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> model = SpatialMamba(dims=(16, 32), depths=(1, 1), num_classes=10)
    >>> model(torch.randn(1, 3, 65, 40)).shape
    torch.Size([1, 10])
    """

    renaming = MLLA_PYRAMID + Renaming(under(*BLOCK, _BLOCK))
    first_conv = f"stem.{ResidualStem.first_conv}"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 4, 8, 4),
        expansion: float = 2.0,
        mlp_ratio: float = 4.0,
        scan_order: OrderFunction = raster,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}

        def block(stage: int, index: int, dim: int, drop_path: float) -> Block:
            positions = {name: ConditionalPosition(dim, **dd) for name in ("position", "position2")}
            mixer = StructureAwareSSM(dim, expansion, scan_order, **dd)
            return Block(
                dim, mixer, LeanMlp(dim, widened(dim, mlp_ratio, "mlp_ratio"), **dd), drop_path, **positions, **dd
            )

        stages = make_stages(block, dims, depths, InvertedDownsample, drop_path_rate, **dd)
        super().__init__(
            ResidualStem(in_chans, dims[0], **dd),
            stages,
            nn.LayerNorm(dims[-1], **dd),
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            **dd,
        )
        initialise_linear_layers(self)

    def no_weight_decay(self) -> set[str]:
        # official: one-dimensional tensors, of which the step sizes' bias and D are two-dimensional here.
        return self.parameters_ending("dt_bias", "D")


def _variant(name: str, title: str, file: str, **arguments: Any) -> Variant:
    return Variant(name, title, arguments, f"https://drive.google.com/file/d/{file}/view?usp=drive_link")


_DEEP = (2, 4, 21, 5)

FAMILY = Family(
    title="Spatial-Mamba",
    model=SpatialMamba,
    paper="2410.15091",
    repository="https://github.com/EdwardChasel/Spatial-Mamba",
    commit="71221ebfaa5fe797445be0292f0ec7048fe457c1",
    license="apache-2.0",
    owner="edwardchasel",
    strides=(4, 8, 16, 32),
    small={"spatialmamba_tiny": {"dims": (16, 24, 32, 40), "depths": (1, 1, 1, 1)}},
    variants=(
        _variant("spatialmamba_tiny", "Spatial-Mamba-T", "19kXoqGSTuKKs4AHbdUSrdKZTwTWenLIW"),
        _variant("spatialmamba_small", "Spatial-Mamba-S", "1Wb3sYoWLpgmWrmHMYKwdgDwGPZaqM28O", depths=_DEEP),
        _variant(
            "spatialmamba_base",
            "Spatial-Mamba-B",
            "1k8dHp2QRCOqBSgAi36YkhZp_O8LqOPjM",
            dims=(96, 192, 384, 768),
            depths=_DEEP,
        ),
    ),
    parts=(
        ("unidirectional scan", "selective scan of the states", raster),
        ("structure-aware state fusion (SASF)", "StateFusion", StateFusion),
        ("structure-aware SSM", "StructureAwareSSM", StructureAwareSSM),
        ("Spatial-Mamba block", "SpatialMambaBlock", Block),
        ("stem", "Stem", ResidualStem),
        ("Spatial-Mamba", "SpatialMamba", SpatialMamba),
    ),
)
