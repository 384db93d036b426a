"""Res-VMamba: fine-grained food classification with residual connections around the stages of VMamba.

The first VMamba; what enters a stage is also pooled, projected and added to what enters the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssm.models._checkpoint import Renaming
from vssm.models._family import Family, TrainingData, Variant
from vssm.models._pyramid import Pyramid, Stage, make_stages
from vssm.models.vmamba import VanillaVMamba
from vssm.nn import (
    SS2D,
    Block,
    ChannelsLastConv2d,
    PatchMerging,
    PatchStem,
    StreamLayerNorm,
    initialise_linear_layers,
)
from vssm.scan import OrderFunction, cross


class ResidualMerging(nn.Module):
    """Patch merging of a stage's output, plus a projection of the largest of every 2 x 2 of the stage's input.

    official: the projections are made anew, of random numbers, in every forward pass: they are never trained, in no
    file, and the same image gives other logits each time. Here: parameters, which start as one such draw.
    official: odd sizes fail, because the pooling rounds down and the merging up. Here: the pooling rounds up too, and
    the largest of a window at the border is that of the positions there are.

    Args:
        in_channels, channels: before and after.

    >>> x = torch.randn(1, 7, 6, 4)
    >>> ResidualMerging(4, 8)(x, x).shape
    torch.Size([1, 4, 3, 8])
    """

    stride = PatchMerging.stride

    def __init__(self, in_channels: int, channels: int, **dd: Any):
        super().__init__()
        self.merging = PatchMerging(in_channels, channels, **dd)
        self.residual = ChannelsLastConv2d(in_channels, channels, kernel_size=1, **dd)

    def forward(self, x: Tensor, skipped: Tensor) -> Tensor:
        """The output and the input of a stage, (batch, height, width, in_channels) both."""
        pooled = F.max_pool2d(skipped.permute(0, 3, 1, 2), kernel_size=2, ceil_mode=True)
        return self.merging(x) + self.residual(pooled.permute(0, 2, 3, 1))


class ResVMamba(Pyramid):
    """Res-VMamba.

    Args:
        dims, depths: channels and number of blocks of each stage.
        state, expansion: of the blocks, see SS2D.
        scan_order: a function (height, width) -> ScanOrder.
        drop_rate, drop_path_rate: dropout before the classifier; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> model = ResVMamba(dims=(16, 32), depths=(1, 1), num_classes=10)
    >>> model(torch.randn(1, 3, 65, 40)).shape
    torch.Size([1, 10])
    """

    renaming = VanillaVMamba.renaming + Renaming(
        (
            ("layers.{i}.downsample", "stages.{i+1}.downsample.merging"),
            # Not in the official files; so called in case that someone makes them parameters there.
            ("residual_fuse.{i}", "stages.{i+1}.downsample.residual"),
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
        scan_order: OrderFunction = cross,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}

        def block(stage: int, index: int, dim: int, drop_path: float) -> Block:
            mixer = SS2D(dim, state, expansion, conv_bias=True, gated=True, scan_order=scan_order, **dd)
            return Block(dim, mixer, drop_path=drop_path, **dd)

        super().__init__(
            PatchStem(in_chans, dims[0], norm=StreamLayerNorm, **dd),
            make_stages(block, dims, depths, ResidualMerging, drop_path_rate, **dd),
            nn.LayerNorm(dims[-1], **dd),
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            **dd,
        )
        # Stages are not called as a whole here, so that hooks on them would see nothing.
        self.feature_info = [{**info, "module": f"{info['module']}.blocks"} for info in self.feature_info]
        initialise_linear_layers(self)

    def maps(self, image: Tensor, stages: Sequence[Stage]) -> Iterator[Tensor]:
        for _, x in self.entries_and_maps(image, stages):
            yield x

    def entries_and_maps(self, image: Tensor, stages: Sequence[Stage]) -> Iterator[tuple[Tensor, Tensor]]:
        x = skipped = self.stem(image)
        for i, stage in enumerate(stages):
            skipped = stage.downsample(x, skipped) if i > 0 else x
            x = stage.run_blocks(skipped)
            yield skipped, x

    def resize_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official weights, to which the projections of the residuals are added as zeros.

        The other weights were trained with projections drawn at random in every step, and zeros are the mean of these.
        """
        own = {name: value for name, value in self.state_dict().items() if ".residual." in name}
        if not state or not own.keys().isdisjoint(state):
            return state
        return state | {name: torch.zeros_like(value) for name, value in own.items()}


FAMILY = Family(
    title="Res-VMamba",
    model=ResVMamba,
    paper="2402.15761",
    repository="https://github.com/ChiShengChen/ResVMamba",
    commit="b7a080df1b99ea655c3b55be2528ff02f4849063",
    license="unknown",
    owner="ms57rd",
    strides=(4, 8, 16, 32),
    data=TrainingData("cnfood241", "CNFOOD-241", "cnfood-241", 241),
    small={"res_vmamba_tiny": {"dims": (16, 24, 32, 40), "depths": (1, 1, 1, 1)}},
    variants=(
        Variant("res_vmamba_tiny", "Res-VMamba-T", {"depths": (2, 2, 9, 2)}),
        Variant(
            "res_vmamba_small",
            "Res-VMamba-S",
            {"depths": (2, 2, 27, 2)},
            "https://huggingface.co/ms57rd/Res-VMamba/resolve/main/ckpt_epoch_166.pth",
        ),
    ),
    parts=(
        ("2D-Selective-Scan (SS2D)", "SS2D", SS2D),
        ("visual state-space (VSS) block", "VSSBlock", Block),
        ("global residual mechanism", "in the forward of VSSM", ResidualMerging),
        ("Res-VMamba", "VSSM", ResVMamba),
    ),
)
