"""ViT-Adapter beside plain models: maps, gradients, the attention against its definition, official names, errors."""

import math

import pytest
import torch
from families import CLASSES, KINDS, model_class
from mmdet.registry import MODELS as MMDET
from torch import Tensor, nn

from vssm.errors import ConfigError
from vssm.mm.tasks.adapter import AdapterBackbone, DeformableAttention, centres
from vssm.models import Plain, official_state_dict

SMALL = dict(KINDS)
PLAIN = [
    name
    for name, _ in CLASSES
    if issubclass(model_class(name), Plain) and not model_class(name).has_class_token and "depth" in SMALL[name]
]


def build(name: str = "plainmamba_l1", **arguments: object) -> AdapterBackbone:
    """A small backbone whose tokens see the adapter's maps from the start, officially weighted by zero."""
    torch.manual_seed(0)
    small = {"embed_dim": 32, "depth": 4}
    backbone = MMDET.build(
        {"type": "AdapterBackbone", "name": name, "heads": 4, "width": 8, **SMALL[name], **small, **arguments}
    )
    for interaction in backbone.interactions:
        nn.init.normal_(interaction.injector.gamma)
    return backbone


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("size", [(64, 96), (77, 101)])
def test_any_plain_model_gives_maps_of_four_strides(name: str, size: tuple[int, int]) -> None:
    backbone = build(name)
    maps = backbone(torch.randn(2, 3, *size))
    assert backbone.channels == [32] * 4 and backbone.strides == [4, 8, 16, 32]
    assert [tuple(x.shape) for x in maps] == [
        (2, 32, *(math.ceil(side / stride) for side in size)) for stride in backbone.strides
    ]


def test_every_parameter_gets_a_gradient() -> None:
    """One that is not zero, once the attention depends on its queries; at first it does not, officially."""
    backbone = build()
    with torch.no_grad():
        for parameter in backbone.interactions.parameters():
            parameter.normal_(std=0.1)
    sum((x * torch.randn_like(x)).sum() for x in backbone(torch.randn(2, 3, 64, 96))).backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []
    assert [name for name, parameter in backbone.named_parameters() if not parameter.grad.any()] == []


def test_groups_end_where_out_indices_say() -> None:
    """Blocks after the last group are gone, and a change in a group is seen by the maps."""
    backbone = build(out_indices=(0, 2))
    assert len(backbone.model.blocks) == 3 and len(backbone.interactions) == 2
    assert [len(each.extra_extractors) for each in backbone.interactions] == [0, 2]
    x = torch.randn(2, 3, 64, 64)
    before = backbone(x)[0]
    for block in backbone.model.blocks:
        with torch.no_grad():
            block.mixer.out_proj.weight.mul_(-1)
        after = backbone(x)[0]
        assert not torch.allclose(before, after)
        before = after


def looked_up(image: Tensor, column: float, row: float) -> Tensor:
    """(channels, rows, columns) at a place in positions, interpolated bilinearly, with zeros beyond."""
    total = torch.zeros_like(image[:, 0, 0])
    for y in (math.floor(row), math.floor(row) + 1):
        for x in (math.floor(column), math.floor(column) + 1):
            if 0 <= y < image.shape[1] and 0 <= x < image.shape[2]:
                total += image[:, y, x] * (1 - abs(row - y)) * (1 - abs(column - x))
    return total


@torch.no_grad()
def test_deformable_attention_is_what_it_says() -> None:
    torch.manual_seed(0)
    sizes, grid, heads, points = [(4, 6), (2, 3)], (2, 2), 2, 3
    attention = DeformableAttention(8, heads, len(sizes), points).double()
    queries, values = torch.randn(1, 4, 8).double(), torch.randn(1, 30, 8).double()
    places = centres([grid], queries.device)
    found = attention(queries, places, values, sizes)[0]

    projected = attention.value_proj(values[0]).split([24, 6])
    maps = [part.T.unflatten(1, size) for part, size in zip(projected, sizes, strict=True)]
    for i, query in enumerate(queries[0]):
        offsets = attention.sampling_offsets(query).view(heads, len(sizes), points, 2)
        weights = attention.attention_weights(query).view(heads, -1).softmax(-1).view(heads, len(sizes), points)
        expected = torch.zeros(heads, 4).double()
        for head in range(heads):
            for level, (rows, columns) in enumerate(sizes):
                for point in range(points):
                    column, row = places[i].double() * torch.tensor([columns, rows]) - 0.5 + offsets[head, level, point]
                    look = looked_up(maps[level][4 * head : 4 * head + 4], float(column), float(row))
                    expected[head] += weights[head, level, point] * look
        torch.testing.assert_close(found[i], attention.output_proj(expected.flatten()), atol=1e-6, rtol=1e-6)


def test_heads_start_by_looking_in_directions_of_their_own() -> None:
    attention = DeformableAttention(8, heads=4, maps=1, points=2)
    attention.reset()
    directions = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    expected = torch.stack([directions, 2 * directions], 1)
    torch.testing.assert_close(attention.sampling_offsets.bias.view(4, 2, 2), expected, atol=1e-6, rtol=0)
    assert not attention.sampling_offsets.weight.any() and not attention.attention_weights.weight.any()


def test_at_first_the_adapter_leaves_the_model_as_it_is() -> None:
    backbone = build()
    for interaction in backbone.interactions:
        nn.init.zeros_(interaction.injector.gamma)
    x, seen = torch.randn(2, 3, 64, 64), []
    backbone.model.blocks[-1].register_forward_hook(lambda block, inputs, output: seen.append(output))
    backbone(x)
    (last,) = backbone.model.forward_intermediates(x, indices=[3], intermediates_only=True)
    torch.testing.assert_close(seen[0].transpose(1, 2).unflatten(2, (4, 4)), last)


def test_official_detectors_are_read() -> None:
    """The model's weights have the authors' names beside those of the adapter."""
    backbone, other = build(), build(heads=4)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_(std=0.1)
    official = official_state_dict(other.model) | {
        f"backbone.{name}": value for name, value in other.state_dict().items() if not name.startswith("model.")
    }
    for name in (
        "layers.0.mamba.A_log",
        "interactions.3.extra_extractors.1.ffn.dwconv.dwconv.weight",
        "spm.stem.7.bias",
    ):
        assert f"backbone.{name}" in official
    nn.ModuleDict({"backbone": backbone}).load_state_dict(official)
    x = torch.randn(2, 3, 64, 64)
    for ours, theirs in zip(backbone.eval()(x), other.eval()(x), strict=True):
        assert torch.equal(ours, theirs)


def test_mixed_precision_looks_in_float32() -> None:
    backbone = build().eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = backbone(x)
    with torch.no_grad():
        for a, b in zip(half, backbone(x), strict=True):
            assert (a - b).abs().mean() < 0.05 * b.abs().mean()


def test_errors() -> None:
    with pytest.raises(ConfigError, match="'vmamba_tiny' has several strides"):
        AdapterBackbone("vmamba_tiny", **SMALL["vmamba_tiny"])
    with pytest.raises(ConfigError, match="class token"):
        AdapterBackbone("vim_tiny", **SMALL["vim_tiny"])
    with pytest.raises(ConfigError, match="heads is 5; expected a number that divides 32 channels"):
        build(heads=5)
