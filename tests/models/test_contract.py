"""What the contract leaves open to families: any strides, no class token, and networks of another shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import timm
import torch
from families import CLASSES
from timm.models import group_parameters
from torch import Tensor, nn

from vssm.models import Backbone, Plain, Pyramid, load_checkpoint
from vssm.models._pyramid import make_stages
from vssm.nn import BatchNormStem, Block, ChannelsLastConv2d, PatchStem


class Shrink(ChannelsLastConv2d):
    """A convolution of stride 3."""

    def __init__(self, in_channels: int, channels: int, **dd: Any):
        super().__init__(in_channels, channels, 3, stride=3, padding=1, **dd)


class Toy(Pyramid):
    """Stages at strides 8, 8 and 24, whose blocks know their numbers."""

    def __init__(self, dims: tuple[int, ...] = (4, 8, 8), depths: tuple[int, ...] = (1, 2, 1)):
        numbers = []

        def block(stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
            numbers.append((stage, index))
            return Block(dim, nn.Linear(dim, dim), drop_path=drop_path)

        def downsample(in_channels: int, channels: int) -> nn.Module:
            return Shrink(in_channels, channels) if in_channels == channels else nn.Linear(in_channels, channels)

        stem = BatchNormStem(3, [(4, 3, 2), (4, 3, 2), (dims[0], 3, 2)])
        stages = make_stages(block, dims, depths, downsample, 0.0)
        super().__init__(stem, stages, nn.LayerNorm(dims[-1]), 3, 5, "avg", 0.0)
        self.numbers = numbers


class Columns(Plain):
    """Tokens without a class token."""

    first_conv = "stem.proj"

    def __init__(self, depth: int = 2, global_pool: str = "avg"):
        super().__init__(6, 8, depth, 3, 5, global_pool, 0.0)
        self.stem = PatchStem(3, 6, 8)
        self.blocks = nn.Sequential(*(Block(6, Pass(), nn.Linear(6, 6)) for _ in range(depth)))
        self.norm = nn.LayerNorm(6)

    def embed(self, image: Tensor) -> tuple[Tensor, int, int]:
        patches = self.stem(image)
        return patches.flatten(1, 2), *patches.shape[1:3]


class Pass(nn.Module):
    """A mixer of tokens that mixes nothing."""

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        assert tokens.shape[1] == height * width
        return tokens


class Branches(Backbone):
    """Two branches at strides 4 and 8 through the whole depth, as in HRNet."""

    first_conv, classifier, output_fmt = "stem.proj", "head", "NHWC"

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.coarse = PatchStem(3, 4, 4), PatchStem(4, 6, 2)
        self.head = nn.Linear(6, 5)
        self.num_features = self.head_hidden_size = 6
        self.feature_info = [
            {"num_chs": 4, "reduction": 4, "module": "stem"},
            {"num_chs": 6, "reduction": 8, "module": "coarse"},
        ]

    @classmethod
    def count_maps(cls, arguments: Mapping[str, Any]) -> int:
        return 2

    def forward_intermediates(self, image: Tensor, **_: Any) -> list[Tensor]:
        fine = self.stem(image).permute(0, 3, 1, 2)
        return [fine, self.coarse(fine).permute(0, 3, 1, 2)]

    def forward_features(self, image: Tensor) -> Tensor:
        return self.forward_intermediates(image)[-1].permute(0, 2, 3, 1)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = features.mean((1, 2))
        return pooled if pre_logits else self.head(pooled)


def test_a_pyramid_has_the_strides_of_its_parts() -> None:
    model = Toy().eval()
    assert [info["reduction"] for info in model.feature_info] == [8, 8, 24]
    assert model.numbers == [(0, 0), (1, 0), (1, 1), (2, 0)]
    maps = model.forward_intermediates(torch.randn(1, 3, 96, 48), intermediates_only=True)
    assert [tuple(x.shape) for x in maps] == [(1, 4, 12, 6), (1, 8, 12, 6), (1, 8, 4, 2)]
    assert model.first_conv == "stem.layers.0.conv" and model.get_submodule(model.first_conv).in_channels == 3


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind[0])
def test_layers_of_learning_rates_rise_in_the_order_in_which_they_run(kind: tuple[str, dict]) -> None:
    model = timm.create_model(kind[0], **kind[1]).eval()
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    first_runs: dict[str, set[int]] = {}
    for name, module in model.named_modules():
        own = {layers[f"{name}.{each}"] for each, _ in module.named_parameters(recurse=False) if name}
        module.register_forward_pre_hook(lambda *_, name=name, own=own: first_runs.update({name: own}))
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    ran = [layer for own in first_runs.values() for layer in own]
    assert ran and ran == sorted(ran)


def test_a_plain_model_needs_no_class_token() -> None:
    model, image = Columns(), torch.randn(2, 3, 16, 32)
    assert model(image).shape == (2, 5)
    assert model.forward_intermediates(image, indices=[1], intermediates_only=True)[0].shape == (2, 6, 2, 4)
    with pytest.raises(ValueError, match=r"global_pool is 'token'; expected one of \('avg', 'max', ''\)"):
        Columns(global_pool="token")


def test_a_network_of_branches_fits_the_contract(tmp_path) -> None:
    model, other = Branches(), Branches()
    assert model(torch.randn(2, 3, 16, 32)).shape == (2, 5)
    torch.save(model.state_dict(), tmp_path / "branches.pth")
    load_checkpoint(other, tmp_path / "branches.pth")
    assert torch.equal(model.head.weight, other.head.weight)


def test_what_a_shape_of_network_has_to_define_is_named() -> None:
    with pytest.raises(NotImplementedError):
        Backbone().forward(torch.zeros(1))
