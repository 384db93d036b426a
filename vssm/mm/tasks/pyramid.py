"""Maps of several strides from the single map of a plain model, for detection heads."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from vssm.errors import ConfigError

# For norm_cfg=dict(type="LN2d") in convolutional heads, as in detectron2.
MODELS.register_module("LN2d", module=LayerNorm2d)


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """ViTDet's simple feature pyramid (arXiv 2203.16527): four or more strides from the last map.

    A map of stride s gives maps of strides s / 4, s / 2, s and 2 s, by two transposed convolutions, by one, unchanged,
    and by max-pooling, each followed by a 1 x 1 and a 3 x 3 convolution with LayerNorms. Further maps, of stride 4 s
    and up, take every second position of the previous one. Odd sizes are rounded up, as in the pyramid models.

    For UPerNet on maps of four depths use mmseg's ``Feature2Pyramid``.

    Args:
        in_channels: of the last map.
        out_channels: of every output map.
        num_outs: number of output maps, at least four.

    Raises:
        ConfigError: fewer than four maps, or channels that are no multiple of four.

    Example:
        >>> import torch
        >>> neck = SimpleFeaturePyramid(in_channels=16, out_channels=8, num_outs=5)
        >>> [tuple(x.shape) for x in neck([torch.zeros(1, 16, 5, 4)])]
        [(1, 8, 20, 16), (1, 8, 10, 8), (1, 8, 5, 4), (1, 8, 3, 2), (1, 8, 2, 1)]
    """

    def __init__(
        self, in_channels: int, out_channels: int = 256, num_outs: int = 4, init_cfg: dict | None = None
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if num_outs < 4:
            raise ConfigError(f"neck: num_outs is {num_outs}; expected 4, or more for further strides")
        if not isinstance(in_channels, int) or in_channels % 4:
            raise ConfigError(f"neck: in_channels is {in_channels}; expected the last map's, a multiple of 4")
        self.in_channels, self.num_outs = in_channels, num_outs
        half, quarter = in_channels // 2, in_channels // 4
        self.levels = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(in_channels, half, kernel_size=2, stride=2),
                    LayerNorm2d(half),
                    nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, kernel_size=2, stride=2),
                    *_projection(quarter, out_channels),
                ),
                nn.Sequential(
                    nn.ConvTranspose2d(in_channels, half, kernel_size=2, stride=2), *_projection(half, out_channels)
                ),
                nn.Sequential(*_projection(in_channels, out_channels)),
                nn.Sequential(
                    nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True), *_projection(in_channels, out_channels)
                ),
            ]
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps (batch, channels, height, width), of which only the last is used -> `num_outs` maps, largest first."""
        last = maps[-1]
        if last.shape[1] != self.in_channels:
            raise ConfigError(
                f"neck: the backbone's last map has {last.shape[1]} channels, in_channels is {self.in_channels}: "
                f"set neck.in_channels={last.shape[1]}"
            )
        pyramid = [level(last) for level in self.levels]
        while len(pyramid) < self.num_outs:
            pyramid.append(F.max_pool2d(pyramid[-1], kernel_size=1, stride=2))
        return tuple(pyramid)


def _projection(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    ]
