"""U-shaped segmentation: a decoder that mirrors its encoder, for medical and remote-sensing images.

Needs mmseg; configs name the head, `vssm.mm.tasks.heads` registers it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from vssm.errors import ConfigError
from vssm.inference.create import create_model
from vssm.inference.saved import to_plain
from vssm.models import Pyramid, Renaming, under
from vssm.nn import Block, ChannelsLastConv2d, LeanMlp, PatchExpanding, drop_path_rates

# Where official U-shaped networks and this head have their blocks, and where the encoders have the same.
_BLOCKS = (("layers.{i}.blocks.{j}", "layers_up.{i}.blocks.{j}"), ("stages.{i}.blocks.{j}", "levels.{i}.blocks.{j}"))
_EXPANSIONS = (
    ("layers_up.{i}.upsample", "levels.{i}.upsample"),
    ("final_up", "final_up"),
    ("final_conv", "conv_seg"),
)


class UShapedHead(BaseDecodeHead):
    """The decoder of VM-UNet (arXiv 2402.02491) and MHS-VM, for the maps of any pyramid.

    From the coarsest level to the finest: blocks; then the skip of the same level is added, and patch expanding doubles
    the size and takes the channels of the next level. After the finest level, one step to the size of the image.

    The two networks themselves are ``VSSMBackbone`` with ``entries=True`` and ``output_norm=False`` on
    "vanilla_vmamba_tiny" and "mhs_vm_4h", and ``in_index=(1, 2, 3, 4)``; other pyramids give what their stages end in,
    ``in_index=(1, 2, 3, 3)``, or (0, 1, 2, 3, 3) and ``stride=4`` for one level more.

    Args:
        in_channels: of the skips from the finest to the coarsest, and of the map that the coarsest level begins with.
        num_classes: classes of the data.
        depths: blocks of each level from the coarsest to the finest, which has no skip: as many as `in_channels`.
        stride: pixels per position of the finest skip; the finest level has half of it.
        channels: of the map at the size of the image; if not given, those of the finest level over the last step's
            factor, as in the networks named above, which is few for many classes.
        blocks: a pyramid whose blocks the levels have, ``dict(name="vanilla_vmamba_tiny")`` with any of its arguments
            but the sizes; depthwise 7 x 7 convolutions with an MLP (ConvNeXt's) if not given.
        drop_path_rate: stochastic depth, which falls linearly from this rate at the coarsest level.
        in_index: which maps of the backbone; the first ones if not given.
        dropout_ratio: in front of the classifier.
        **options: of mmseg's ``BaseDecodeHead``: ``loss_decode``, ``ignore_index`` ...

    Raises:
        ConfigError: numbers of channels or levels that do not fit, or blocks of a model that is no pyramid or that cuts
            its maps into windows.

    Example:
        >>> import torch
        >>> head = UShapedHead(in_channels=[16, 32, 32], num_classes=5, depths=(1, 1, 1), stride=8)
        >>> sizes = [(16, 9, 8), (32, 5, 4), (32, 5, 4)]
        >>> head([torch.randn(1, *size) for size in sizes]).shape
        torch.Size([1, 5, 72, 64])
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        depths: Sequence[int] = (2, 2, 2, 1),
        stride: int = 8,
        channels: int | None = None,
        blocks: Mapping[str, object] | None = None,
        drop_path_rate: float = 0.0,
        in_index: Sequence[int] | None = None,
        dropout_ratio: float = 0.0,
        **options: object,
    ) -> None:
        if len(in_channels) < 2 or in_channels[-1] != in_channels[-2] or len(depths) != len(in_channels):
            raise ConfigError(
                f"decode_head: in_channels are {list(in_channels)} and depths {list(depths)}; expected as many, the "
                "last two channels the same: the coarsest skip, and the map that its level begins with"
            )
        factor = stride // 2
        dims = (in_channels[0] // 2, *in_channels[:-1])
        super().__init__(
            in_channels=list(in_channels),
            channels=channels or max(1, dims[0] // factor),
            num_classes=num_classes,
            in_index=list(in_index or range(len(in_channels))),
            input_transform="multiple_select",
            dropout_ratio=dropout_ratio,
            **options,
        )
        levels = _levels(dims, depths[::-1], drop_path_rate, to_plain(blocks))
        upsamples = [PatchExpanding(coarse, fine) for fine, coarse in pairwise(dims)]
        self.levels = nn.ModuleList(
            nn.Sequential(OrderedDict(upsample=upsample, blocks=level))
            for upsample, level in zip((nn.Identity(), *reversed(upsamples)), reversed(levels), strict=True)
        )
        self.final_up = PatchExpanding(dims[0], self.channels, factor)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps (batch, channels, rows, columns) -> (batch, classes, height, width)."""
        *skips, x = (each.permute(0, 2, 3, 1) for each in self._transform_inputs(inputs))
        x = self.levels[0](x)
        for level, skip in zip(self.levels[1:], reversed(skips), strict=True):
            # Encoders round odd sizes up, so that a level may come back one row or column too large.
            x = level(x[:, : skip.shape[1], : skip.shape[2]] + skip)
        return self.cls_seg(self.final_up(x).permute(0, 3, 1, 2))

    def our_layout(self, weights: Mapping[str, Tensor], segmentor: nn.Module) -> dict[str, Tensor]:
        """The weights of a whole segmentor by our names, from those of an official U-shaped network or ours."""
        shapes = {name: value.shape for name, value in segmentor.state_dict().items()}
        return official_layout(segmentor.backbone.model.renaming).read(weights, shapes)


def _levels(
    dims: Sequence[int], depths: Sequence[int], drop_path_rate: float, blocks: dict[str, object] | None
) -> list[nn.Sequential]:
    """The blocks of the levels, finest first, which is the order of an encoder's stages."""
    if blocks is None:
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        return [
            nn.Sequential(*(_plain_block(dim, next(rates)) for _ in range(depth)))
            for dim, depth in zip(dims, depths, strict=True)
        ]
    name, arguments = blocks["name"], {key: value for key, value in blocks.items() if key != "name"}
    mirror = create_model(name, **{**arguments, "dims": dims, "depths": depths, "drop_path_rate": drop_path_rate})
    if not isinstance(mirror, Pyramid):
        raise ConfigError(f"decode_head: blocks are those of {name!r}, which is no pyramid of this library")
    if any(stage.window for stage in mirror.stages):
        raise ConfigError(
            f"decode_head: blocks are those of {name!r}, which work inside windows; expected some for whole maps"
        )
    return [stage.blocks for stage in mirror.stages]


def _plain_block(dim: int, drop_path: float) -> Block:
    mixer = ChannelsLastConv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
    return Block(dim, mixer, LeanMlp(dim, 4 * dim), drop_path)


def official_layout(encoder: Renaming) -> Renaming:
    """The layout of the official U-shaped networks' files, VM-UNet's and MHS-VM's, as that of our segmentors.

    Args:
        encoder: the layout of the backbone's weights, `vssm.models.Backbone.renaming`, and of the decoder's blocks.
    """

    def moved(names: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(names, tuple):
            return tuple(map(moved, names))
        for there, here in _BLOCKS:
            names = names.replace(there, here)
        return names

    def decoder(rows: Sequence[tuple]) -> list[tuple]:
        return [(moved(row[0]), moved(row[1]), *row[2:]) for row in rows if moved(row[0]) != row[0]]

    return Renaming(
        rows=(
            *under("vmunet", "backbone.model", encoder.rows),
            *under("vmunet", "decode_head", (*decoder(encoder.rows), *_EXPANSIONS)),
        ),
        older=under("vmunet", "vmunet", (*encoder.older, *decoder(encoder.older))),
        twins=under("vmunet", "vmunet", (*encoder.twins, *decoder(encoder.twins))),
    )
