"""ViT-Adapter (arXiv 2205.08534) for any plain model: maps of four strides from convolutions beside the blocks.

The convolutions see the image at strides 8, 16 and 32, and the blocks at one. Before every group of blocks their tokens
look up these maps, and after it the maps look up the tokens, by deformable attention. Parameters have the names of
ViT-Adapter's code, so that official detectors on it are read as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from vssm.errors import ConfigError
from vssm.mm.tasks.backbone import VSSMBackbone
from vssm.models import Plain

Size = tuple[int, int]
STRIDES = (4, 8, 16, 32)


@MODELS.register_module()
class AdapterBackbone(VSSMBackbone):
    """A plain model with an adapter beside it: four maps, of strides 4 to 32, each with a batch norm.

    In PlainMamba's detectors. Where several processes train, set ``sync_bn='torch'`` in the config: batch norms then
    see the images of all of them, as officially. Heads that do not read the first map need
    ``find_unused_parameters=True``.

    Args:
        name: a plain model of this library without a class token, such as "plainmamba_l1".
        out_indices: the last block of each group; blocks after the last group are removed. None for four groups of
            equal length.
        heads: of the deformable attention; they divide the channels.
        points: that a head looks up in each map.
        width: channels of the adapter's first convolutions.
        **arguments: those of `VSSMBackbone`, but for output_norm and entries. In the adapter, drop_path_rate is that of
            every group; frozen_stages, norm_eval and grad_checkpointing are for the model alone.

    Raises:
        ConfigError: a model with a class token or of several strides, or what `VSSMBackbone` refuses.

    Example:
        >>> backbone = AdapterBackbone("plainmamba_l1", embed_dim=32, depth=4, heads=4, width=8)
        >>> [tuple(x.shape) for x in backbone(torch.zeros(2, 3, 64, 97))]
        [(2, 32, 16, 25), (2, 32, 8, 13), (2, 32, 4, 7), (2, 32, 2, 4)]
        >>> backbone.channels, backbone.strides
        ([32, 32, 32, 32], [4, 8, 16, 32])
    """

    def __init__(
        self,
        name: str,
        out_indices: Sequence[int] | None = None,
        heads: int = 6,
        points: int = 4,
        width: int = 64,
        drop_path_rate: float = 0.0,
        **arguments: object,
    ) -> None:
        super().__init__(name, out_indices, output_norm=False, drop_path_rate=drop_path_rate, **arguments)
        if not isinstance(self.model, Plain) or self.model.has_class_token:
            raise ConfigError(
                f"backbone: {name!r} has several strides, or a class token; an adapter is for plain models"
            )
        channels = self.channels[0]
        if channels % heads:
            raise ConfigError(f"backbone: heads is {heads}; expected a number that divides {channels} channels")
        self.channels, self.strides = [channels] * 4, list(STRIDES)
        self.level_embed = nn.Parameter(torch.empty(3, channels))
        self.spm = SpatialPrior(self.model.in_chans, width, channels)
        self.interactions = nn.ModuleList(
            Interaction(channels, heads, points, drop_path_rate, last=i == len(self.out_indices) - 1)
            for i in range(len(self.out_indices))
        )
        self.up = nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)
        self.ad_norm1, self.ad_norm2, self.ad_norm3, self.ad_norm4 = (nn.BatchNorm2d(channels) for _ in STRIDES)
        for part in (self.spm, self.interactions, self.up):
            part.apply(_initialise)
        nn.init.normal_(self.level_embed)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(batch, channels, height, width) -> four maps (batch, channels, rows, columns), largest first."""
        first, *maps = self.spm(image)
        sizes = [(x.shape[2], x.shape[3]) for x in maps]
        beside = torch.cat([_tokens(x) + level for x, level in zip(maps, self.level_embed, strict=True)], 1)
        tokens, *grid = self.model.embed(image)

        start = 0
        for interaction, last in zip(self.interactions, self.out_indices, strict=True):
            tokens = interaction.injector(tokens, beside, tuple(grid), sizes)
            for block in self.model.blocks[start : last + 1]:
                tokens, _ = self.model.run_to_map(block, tokens, *grid)
            for extractor in (interaction.extractor, *interaction.extra_extractors):
                beside = extractor(beside, tokens, sizes, tuple(grid))
            start = last + 1

        maps = _maps(beside, sizes)
        finest = self.up(maps[0])[..., : first.shape[2], : first.shape[3]]
        (seen,) = _maps(tokens, [tuple(grid)])
        norms = self.ad_norm1, self.ad_norm2, self.ad_norm3, self.ad_norm4
        return tuple(
            norm(x + F.interpolate(seen, x.shape[2:], mode="bilinear", align_corners=False))
            for norm, x in zip(norms, (first + finest, *maps), strict=True)
        )


class SpatialPrior(nn.Module):
    """Convolutions of an image: four maps of the same channels, of strides 4 to 32; odd sizes are rounded up.

    >>> [tuple(x.shape) for x in SpatialPrior(3, 8, 16)(torch.zeros(1, 3, 64, 97))]
    [(1, 16, 16, 25), (1, 16, 8, 13), (1, 16, 4, 7), (1, 16, 2, 4)]
    """

    def __init__(self, in_chans: int, width: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_conv(in_chans, width, stride=2),
            *_conv(width, width, stride=1),
            *_conv(width, width, stride=1),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.conv2 = nn.Sequential(*_conv(width, 2 * width, stride=2))
        self.conv3 = nn.Sequential(*_conv(2 * width, 4 * width, stride=2))
        self.conv4 = nn.Sequential(*_conv(4 * width, 4 * width, stride=2))
        self.fc1, self.fc2, self.fc3, self.fc4 = (
            nn.Conv2d(factor * width, channels, kernel_size=1) for factor in (1, 2, 4, 4)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        first = self.stem(image)
        second = self.conv2(first)
        third = self.conv3(second)
        return self.fc1(first), self.fc2(second), self.fc3(third), self.fc4(self.conv4(third))


class Interaction(nn.Module):
    """What happens around a group of blocks: the tokens look up the maps before it, and the maps the tokens after it;
    two more times after the last group."""

    def __init__(self, channels: int, heads: int, points: int, drop_path: float, last: bool) -> None:
        super().__init__()
        self.injector = Injector(channels, heads, points)
        self.extractor = Extractor(channels, heads, points, drop_path)
        self.extra_extractors = nn.ModuleList(
            Extractor(channels, heads, points, drop_path) for _ in range(2 if last else 0)
        )


class Injector(nn.Module):
    """Adds to tokens what they look up in the three maps, times a weight of each channel that starts at zero.

    >>> tokens, beside, sizes = torch.randn(2, 6, 8), torch.randn(2, 31, 8), [(4, 6), (2, 3), (1, 1)]
    >>> Injector(8, heads=2, points=4)(tokens, beside, (2, 3), sizes).shape
    torch.Size([2, 6, 8])
    """

    def __init__(self, channels: int, heads: int, points: int) -> None:
        super().__init__()
        self.query_norm, self.feat_norm = (nn.LayerNorm(channels, eps=1e-6) for _ in range(2))
        self.attn = DeformableAttention(channels, heads, maps=3, points=points)
        self.gamma = nn.Parameter(torch.zeros(channels))

    def forward(self, tokens: Tensor, beside: Tensor, grid: Size, sizes: Sequence[Size]) -> Tensor:
        found = self.attn(self.query_norm(tokens), centres([grid], tokens.device), self.feat_norm(beside), sizes)
        return tokens + self.gamma * found


class Extractor(nn.Module):
    """Adds to the positions of three maps what they look up in the tokens, and then what an MLP makes of them, which
    also convolves each map.

    >>> tokens, beside, sizes = torch.randn(2, 6, 8), torch.randn(2, 31, 8), [(4, 6), (2, 3), (1, 1)]
    >>> Extractor(8, heads=2, points=4)(beside, tokens, sizes, (2, 3)).shape
    torch.Size([2, 31, 8])
    """

    def __init__(self, channels: int, heads: int, points: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.query_norm, self.feat_norm, self.ffn_norm = (nn.LayerNorm(channels, eps=1e-6) for _ in range(3))
        self.attn = DeformableAttention(channels, heads, maps=1, points=points)
        self.ffn = ConvMlp(channels, channels // 4)
        self.drop_path = DropPath(drop_path)

    def forward(self, beside: Tensor, tokens: Tensor, sizes: Sequence[Size], grid: Size) -> Tensor:
        places = centres(sizes, beside.device)
        beside = beside + self.attn(self.query_norm(beside), places, self.feat_norm(tokens), [grid])
        return beside + self.drop_path(self.ffn(self.ffn_norm(beside), sizes))


class ConvMlp(nn.Module):
    """Two linear layers with a 3 x 3 depthwise convolution of each map, and GELU, between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = OfEachMap(hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, beside: Tensor, sizes: Sequence[Size]) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(beside), sizes)))


class OfEachMap(nn.Module):
    """One depthwise convolution of several maps, whose positions follow each other: (batch, positions, channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)

    def forward(self, beside: Tensor, sizes: Sequence[Size]) -> Tensor:
        return torch.cat([_tokens(self.dwconv(x)) for x in _maps(beside, sizes)], 1)


class DeformableAttention(nn.Module):
    """Deformable attention to maps of several sizes (arXiv 2010.04159), as in Deformable DETR.

    Each query predicts, for each head, where it looks in each map (offsets from the query's own place, in positions of
    the map) and how much every look counts, which adds up to one over the maps. A look is interpolated bilinearly, with
    zeros beyond the map. Composed of torch's grid_sample, in float32 at least: its gradients on a GPU are summed in no
    fixed order, and it has no second ones.

    Args:
        channels: of queries and maps.
        heads: each looks up its share of the channels.
        maps: how many there are.
        points: looks of a head in each map.

    >>> attention = DeformableAttention(8, heads=2, maps=2, points=4)
    >>> sizes = [(4, 6), (2, 3)]
    >>> attention(torch.randn(2, 24, 8), centres([(4, 6)], torch.device("cpu")), torch.randn(2, 30, 8), sizes).shape
    torch.Size([2, 24, 8])
    """

    def __init__(self, channels: int, heads: int, maps: int, points: int) -> None:
        super().__init__()
        self.heads, self.maps, self.points = heads, maps, points
        self.sampling_offsets = nn.Linear(channels, heads * maps * points * 2)
        self.attention_weights = nn.Linear(channels, heads * maps * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)

    @torch.no_grad()
    def reset(self) -> None:
        """The initialisation of Deformable DETR: every head looks in its own direction, 1, 2, 3 ... positions away, and
        all looks count the same."""
        for layer in (self.sampling_offsets, self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.xavier_uniform_(self.output_proj.weight)
        bias = self.sampling_offsets.bias.view(self.heads, self.maps, self.points, 2)
        angle = torch.arange(self.heads, device=bias.device, dtype=bias.dtype) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction /= direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1, device=bias.device, dtype=bias.dtype)
        bias.copy_((direction[:, None] * steps[:, None])[:, None].expand_as(bias))

    def forward(self, queries: Tensor, places: Tensor, values: Tensor, sizes: Sequence[Size]) -> Tensor:
        """What the queries find.

        Args:
            queries: (batch, queries, channels).
            places: (queries, 2), column and row of each, from 0 to 1 across the maps.
            values: (batch, positions, channels), the positions of the first map, of the second, and so on.
            sizes: rows and columns of each map.

        Returns:
            (batch, queries, channels).
        """
        dtype = torch.promote_types(queries.dtype, torch.float32)
        offsets = self.sampling_offsets(queries).unflatten(-1, (self.heads, self.maps, self.points, 2)).to(dtype)
        weights = self.attention_weights(queries).unflatten(-1, (self.heads, -1)).to(dtype).softmax(-1)
        weights = weights.unflatten(-1, (self.maps, self.points)).permute(0, 2, 3, 1, 4).flatten(0, 1)
        found: list[Tensor] = []
        for i, x in enumerate(_maps(self.value_proj(values).to(dtype), sizes)):
            rows, columns = sizes[i]
            steps = torch.stack([offsets[:, :, :, i, :, 0] / columns, offsets[:, :, :, i, :, 1] / rows], -1)
            looks = (2 * (places[:, None, None] + steps) - 1).transpose(1, 2).flatten(0, 1)
            seen = F.grid_sample(x.unflatten(1, (self.heads, -1)).flatten(0, 1), looks, align_corners=False)
            found.append((seen * weights[:, None, i]).sum(-1))  # (batch x heads, channels of a head, queries)
        total = sum(found[1:], found[0]).unflatten(0, (-1, self.heads)).flatten(1, 2).transpose(1, 2)
        return self.output_proj(total.to(queries.dtype))


def centres(sizes: Sequence[Size], device: torch.device) -> Tensor:
    """Where the positions of maps lie, (positions, 2), column and row from 0 to 1 across each map, in float32.

    >>> centres([(1, 2)], torch.device("cpu"))
    tensor([[0.2500, 0.5000],
            [0.7500, 0.5000]])
    """
    found = []
    for rows, columns in sizes:
        y, x = ((torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n for n in (rows, columns))
        found.append(torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], -1).flatten(0, 1))
    return torch.cat(found)


def _tokens(x: Tensor) -> Tensor:
    """(batch, channels, rows, columns) -> (batch, positions, channels)."""
    return x.flatten(2).transpose(1, 2)


def _maps(tokens: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    """The positions of several maps, (batch, positions, channels), as maps (batch, channels, rows, columns)."""
    parts = tokens.split([rows * columns for rows, columns in sizes], 1)
    return [part.transpose(1, 2).unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]


def _conv(in_chans: int, channels: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_chans, channels, kernel_size=3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU()]


def _initialise(module: nn.Module) -> None:
    """The official initialisation. Called for the parts of a module before itself."""
    if isinstance(module, DeformableAttention):
        module.reset()
    elif isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
