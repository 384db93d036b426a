"""GroupMamba: parameter-efficient and accurate group visual state space model.

A pyramid of four stages. A block cuts the channels of its map into four groups, scans each along one direction alone,
and lets the groups exchange through a gate made of the means of all channels. The classifier reads the mean token after
a block of its own, and has two heads: one for the labels, one for what a teacher says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import ClassifierHead, get_device_dtype, register_notrace_module
from torch import Tensor, nn

from vssm.models._checkpoint import Renaming, under
from vssm.models._family import Family, Variant
from vssm.models._layouts import SS2D_ROWS
from vssm.models._pyramid import Pyramid, make_stages
from vssm.nn import (
    BatchNormStem,
    Block,
    BranchLayerNorm,
    ChannelGate,
    ChannelsLastConv2d,
    ConvDownsample,
    ConvMlp,
    GatedMixer,
    GroupLayerNorm,
    GroupLinear,
    LeanMlp,
    Linear,
    OrderTable,
    SelectiveScan,
    StreamLayerNorm,
    convolved_silu,
    initialise_linear_layers,
    product_of_recomputed,
)
from vssm.ops import sum_norm
from vssm.scan import OrderFunction, cross
from vssm.values import widened


@register_notrace_module
class GroupSS2D(GatedMixer):
    """VMamba's gated mixer for each group of channels, with one direction of the order each, all groups in one scan.

    Args:
        dim: channels of the map (batch, height, width, dim), both ways.
        scan_order: a function (height, width) -> ScanOrder; direction k is that of group k.

    Raises:
        ValueError: the number of directions does not divide dim.

    >>> GroupSS2D(16)(torch.randn(2, 3, 5, 16)).shape
    torch.Size([2, 3, 5, 16])
    """

    def __init__(self, dim: int, scan_order: OrderFunction = cross, **dd: Any):
        super().__init__()
        self.groups = groups = scan_order(2, 2).directions
        if dim % groups:
            raise ValueError(
                f"scan_order has {groups} directions and a stage {dim} channels; expected a divisor of them, as each "
                "direction scans a group of its own: take another order, or other dims"
            )
        width = dim // groups
        self.gated = True
        # official: wrong gradients of the columns' scans on oblong maps. Here: right ones; the outputs are the same.
        self.order_table = OrderTable(scan_order)
        self.in_proj = GroupLinear(groups, width, 2 * width, halves=True, **dd)
        self.conv = ChannelsLastConv2d(dim, dim, kernel_size=3, padding=1, groups=dim, **dd)
        self.scan = SelectiveScan(width, groups, state=1, rank=math.ceil(width / 16), own_inputs=True, **dd)
        self.norm = GroupLayerNorm(dim, groups, **dd)
        self.out_proj = GroupLinear(groups, width, width, **dd)

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().halves(x)[::-1]

    def mix(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        order = self.order_table(height, width, x.device)
        x = convolved_silu(self.conv, x)
        scanned = self.scan(x.reshape(batch, height * width, self.groups, channels // self.groups), order)
        return self.norm(scanned.view_as(x))


@register_notrace_module
class ModulatedGroupMamba(nn.Module):
    """Scanned groups of channels, multiplied by what went in and by a gate of channels, between two norms.

    The two norms are one module: its weights norm the map that comes in, and the product that goes out.

    Args:
        dim, scan_order: as GroupSS2D's.

    >>> ModulatedGroupMamba(16)(torch.randn(2, 3, 5, 16)).shape
    torch.Size([2, 3, 5, 16])
    """

    def __init__(self, dim: int, scan_order: OrderFunction = cross, **dd: Any):
        super().__init__()
        self.norm = BranchLayerNorm(dim, **dd)
        self.groups = GroupSS2D(dim, scan_order, **dd)
        self.skip_scale = nn.Parameter(torch.ones(1, **dd))
        self.gate = ChannelGate(dim, reduction=16, bias=True, **dd)
        self.proj = Linear(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        eps, dtype = self.norm.eps, x.dtype

        def modulated(scanned: Tensor, scale: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return sum_norm(scanned * scale * x, weight, bias, eps=eps, dtype=dtype)

        # In this order float32, of the scale, keeps a product of small numbers.
        scale = self.skip_scale * self.gate.weights(x)
        given = self.groups(x), scale, x, self.norm.weight, self.norm.bias
        return product_of_recomputed(self.proj, modulated, *given)


class ClassBlock(nn.Module):
    """x + norm(mixer(x)), then x + mlp(norm(x)), for a token as a map of one position: (batch, 1, 1, dim), both ways.

    Of its scans, one step long, only the input and output matter and not the decay A.
    """

    def __init__(self, dim: int, mlp_ratio: float, scan_order: OrderFunction, **dd: Any):
        super().__init__()
        self.mixer = ModulatedGroupMamba(dim, scan_order, **dd)
        self.norm1 = StreamLayerNorm(dim, eps=1e-6, **dd)
        self.norm2 = BranchLayerNorm(dim, eps=1e-6, **dd)
        self.mlp = LeanMlp(dim, widened(dim, mlp_ratio, "mlp_ratios"), **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.mixer(x))
        return x + self.mlp(self.norm2(x))


class DistilledHead(ClassifierHead):
    """Pooling, the class block and a norm on the pooled token, and two classifiers.

    The mean of both classifiers' logits comes out; with `distilled_training`, in training mode, the pair
    (logits, logits of the head that the teacher trains), as from timm's distilled DeiT. Without pooling there is no
    token, and the map goes to the classifiers as it is.

    Args:
        in_features: channels of the map.
        num_classes, pool_type, drop_rate: as in timm's ClassifierHead.
        mlp_ratio, scan_order: of the class block.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        mlp_ratio: float,
        scan_order: OrderFunction,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **how: Any,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(in_features, num_classes, **how, **dd)
        self._check_pool()
        self.distilled_training = False
        self.class_block = ClassBlock(in_features, mlp_ratio, scan_order, **dd)
        self.norm = StreamLayerNorm(in_features, eps=1e-6, **dd)
        self.fc_dist = self._like_fc(**dd)

    def _check_pool(self) -> None:
        if self.num_features != self.in_features:
            raise ValueError(
                f"global_pool is {self.global_pool.pool_type!r}, which makes {self.num_features} channels of "
                f'{self.in_features}; expected "avg", "max", "avgmax", or "" for none: the class block needs as many'
            )

    def _like_fc(self, **dd: Any) -> nn.Module:
        """A second classifier of the first one's size."""
        if not isinstance(self.fc, nn.Linear):
            return nn.Identity()
        return nn.Linear(self.fc.in_features, self.fc.out_features, **dd).train(self.training)

    def reset(self, num_classes: int, pool_type: str | None = None, **more: Any) -> None:
        super().reset(num_classes, pool_type, **more)
        self._check_pool()
        self.fc_dist = self._like_fc(**get_device_dtype(self))

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        x = self.global_pool(x)
        if self.global_pool.pool_type:
            x = self.norm(self.class_block(x[:, None, None])).flatten(1)
        x = self.drop(x)
        if pre_logits:
            return x
        logits, of_teacher = self.fc(x), self.fc_dist(x)
        return (logits, of_teacher) if self.distilled_training and self.training else (logits + of_teacher) / 2


_GROUPS = ("mamba_g1", "mamba_g2", "mamba_g3", "mamba_g4")
_MIXER = (
    ("fc1", "gate.reduce"),
    ("fc2", "gate.expand"),
    # Official: a mixer for each group; here: one, with their weights joined.
    *(
        (tuple(f"{group}.{row[0]}" for group in _GROUPS), f"groups.{row[1]}", *(row[2:] or (None,)), True)
        for row in (
            *SS2D_ROWS,
            ("in_proj", "in_proj", ((0, 1), 2)),
            ("out_proj", "out_proj", ((0, 1), 2)),
        )
    ),
)


class GroupMamba(Pyramid):
    """GroupMamba.

    Args:
        dims, depths, mlp_ratios: channels, number of blocks, and the MLPs' hidden channels per channel, of each stage.
        stem_width: channels within the stem.
        scan_order: a function (height, width) -> ScanOrder; each direction scans a group of channels of its own.
        drop_rate, drop_path_rate: dropout before the classifiers; stochastic depth, rising linearly to this rate.
        in_chans, num_classes, global_pool, device, dtype: as everywhere in timm.

    >>> model = GroupMamba(dims=(16, 32), depths=(1, 1), mlp_ratios=(4, 4), stem_width=8, num_classes=10)
    >>> image = torch.randn(2, 3, 65, 40)
    >>> model(image).shape
    torch.Size([2, 10])
    >>> model.set_distilled_training()
    >>> [logits.shape for logits in model.train()(image)]
    [torch.Size([2, 10]), torch.Size([2, 10])]
    """

    renaming = Renaming(
        rows=(
            *(
                (f"patch_embed1.conv.{3 * i + k}", f"stem.layers.{i}.{name}")
                for i in range(3)
                for k, name in enumerate(("conv", "bn"))
            ),
            ("patch_embed1.proj", "stem.projection.conv"),
            ("patch_embed1.norm", "stem.projection.norm"),
            ("patch_embed{i+1}.proj", "stages.{i}.downsample.conv"),
            ("patch_embed{i+1}.norm", "stages.{i}.downsample.norm"),
            ("block{i+1}.{j}", "stages.{i}.blocks.{j}"),
            ("block{i+1}.{j}.attn", "stages.{i}.blocks.{j}.mixer"),
            *under("block{i+1}.{j}.attn", "stages.{i}.blocks.{j}.mixer", _MIXER),
            ("block{i+1}.{j}.mlp.dwconv.dwconv", "stages.{i}.blocks.{j}.mlp.conv"),
            ("norm{i+1}", "stages.{i}.norm"),
            ("norm4", "head.norm"),
            ("post_network.0", "head.class_block"),
            ("post_network.0.attn", "head.class_block.mixer"),
            *under("post_network.0.attn", "head.class_block.mixer", _MIXER),
            ("head", "head.fc"),
            ("dist_head", "head.fc_dist"),
        )
    )
    first_conv = f"stem.{BatchNormStem.first_conv}"
    classifier = ("head.fc", "head.fc_dist")

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: Sequence[int] = (64, 128, 348, 448),
        depths: Sequence[int] = (3, 4, 9, 3),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        stem_width: int = 32,
        scan_order: OrderFunction = cross,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}

        def block(stage: int, index: int, dim: int, drop_path: float) -> Block:
            mlp = ConvMlp(dim, widened(dim, mlp_ratios[stage], "mlp_ratios"), residual=False, pointwise=Linear, **dd)
            norm2 = partial(BranchLayerNorm, eps=1e-6)
            return Block(dim, ModulatedGroupMamba(dim, scan_order, **dd), mlp, drop_path, nn.Identity, norm2, **dd)

        stage_norm = partial(StreamLayerNorm, eps=1e-6)
        layers = [(stem_width, 7, 2), (stem_width, 3, 1), (stem_width, 3, 1)]
        super().__init__(
            BatchNormStem(in_chans, layers, ConvDownsample(stem_width, dims[0], **dd), **dd),
            make_stages(block, dims, depths, ConvDownsample, drop_path_rate, stage_norm, **dd),
            nn.Identity(),  # the norm comes after pooling
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            partial(DistilledHead, mlp_ratio=mlp_ratios[-1], scan_order=scan_order),
            **dd,
        )
        initialise_linear_layers(self)
        initialise_convolutions(self)

    def set_distilled_training(self, enable: bool = True) -> None:
        """In training mode give the pair (logits, logits of the head that the teacher trains) instead of their mean."""
        self.head.distilled_training = enable

    def get_classifier(self) -> tuple[nn.Module, nn.Module]:
        return self.head.fc, self.head.fc_dist

    def remove_head(self) -> None:
        super().remove_head()
        self.head.class_block = self.head.norm = nn.Identity()

    def parameters_without_effect(self) -> set[str]:
        return {name for name in self.parameters_ending("A_log") if name.startswith("head.class_block.")}


def initialise_convolutions(model: nn.Module) -> None:
    """Set convolutions to normal weights that keep the variance of gradients through a ReLU, and zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # which takes milliseconds, and holds nothing
            outputs = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=(2 / outputs) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _variant(size: str, file: str, **arguments: Any) -> Variant:
    title = f"GroupMamba-{size[0].upper()}"
    return Variant(f"groupmamba_{size}", title, arguments, f"https://drive.google.com/file/d/{file}/view?usp=sharing")


FAMILY = Family(
    title="GroupMamba",
    model=GroupMamba,
    paper="2407.13772",
    repository="https://github.com/Amshaker/GroupMamba",
    commit="c1800ed262e995de3c645348e7e0202e8385f334",
    license="mit",
    owner="amshaker",
    strides=(4, 8, 16, 32),
    small={
        "groupmamba_tiny": {
            "dims": (48, 52, 68, 84),  # with 13, 17 and 21 channels in a group
            "depths": (1, 1, 1, 1),
            "mlp_ratios": (2, 2, 2, 2),
            "stem_width": 8,
        }
    },
    variants=(
        _variant("tiny", "1TrYYs0uGZbja_2ONQLyfiNdp8C5ZYP1o"),
        _variant(
            "small",
            "1vTN9ynDcsDuOVrcT9GcQ5nBSk-hXySlh",
            dims=(64, 128, 348, 512),
            depths=(3, 4, 16, 3),
            stem_width=64,
        ),
        _variant(
            "base",
            "1A_srBeDYpsinU5W3PAEADu1saoz413EU",
            dims=(96, 192, 424, 512),
            depths=(3, 6, 21, 3),
            stem_width=64,
        ),
    ),
    parts=(
        ("visual single selective scanning (VSSS) block", "SS2D", GroupSS2D),
        ("channel affinity modulation (CAM)", "fc1, fc2 of GroupMambaLayer", ChannelGate),
        ("modulated group mamba layer", "GroupMambaLayer", ModulatedGroupMamba),
        ("feed-forward network (FFN)", "PVT2FFN", ConvMlp),
        ("block", "Block_mamba", Block),
        ("class block", "ClassBlock", ClassBlock),
        ("distilled heads", "head, dist_head", DistilledHead),
        ("GroupMamba", "GroupMamba", GroupMamba),
    ),
)
