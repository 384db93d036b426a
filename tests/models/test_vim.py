"""Vim: its residual stream, its class token, and its position embedding."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from families import KINDS
from timm.models import save_for_hf
from torch import Tensor, nn

NAME, ARGUMENTS = next(kind for kind in KINDS if kind[0] == "vim_tiny")


def small(**overrides: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=10, **{**ARGUMENTS, **overrides})


def images(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1))


def test_vim_keeps_its_residual_stream_in_float32() -> None:
    model = small().to(torch.bfloat16).eval()
    dtypes = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    model(images(1, 3, 64, 64).to(torch.bfloat16))
    assert dtypes == [torch.float32] * 3


@pytest.mark.parametrize("pool", ["token", "avg", "max"])
def test_vim_pools(pool: str) -> None:
    model, x = small(global_pool=pool).eval(), images(2, 3, 48, 64)
    tokens = model.forward_features(x)
    middle = 3 * 4 // 2
    patches = torch.cat([tokens[:, :middle], tokens[:, middle + 1 :]], 1)
    expected = {"token": tokens[:, middle], "avg": patches.mean(1), "max": patches.amax(1)}
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), expected[pool])


def test_vim_set_input_size_is_what_forward_does() -> None:
    model, x = small().eval(), images(1, 3, 80, 112)
    with torch.no_grad():
        expected = model(x)
        model.pos_embed.requires_grad_(False)
        model.set_input_size((80, 112))
        assert model.pos_embed.shape[1] == 5 * 7 + 1 and not model.pos_embed.requires_grad
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("size", ["a", None, (64,), (64, 64, 3), 64.5])
def test_wrong_image_sizes_are_named(size: object) -> None:
    with pytest.raises(ValueError, match=r"^img_size is .*; expected"):
        small().set_input_size(size)


def test_position_embeddings_come_back_from_a_repository_at_their_image_size(tmp_path: Path) -> None:
    """As many tokens as 64 x 256 pixels have, 4 x 16, square images have too."""
    model, x = small().eval(), images(1, 3, 64, 256)
    nn.init.normal_(model.pos_embed)
    model.set_input_size((64, 256))
    save_for_hf(model, str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), model(x))
        resized = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=96).eval()
        model.set_input_size(96)
        torch.testing.assert_close(resized(x), model(x))


def test_stride_8_models_have_27_by_27_patches() -> None:
    model = timm.create_model("vim_tiny_plus", device="meta")
    assert model.grid == (27, 27)
    assert model.forward_features(torch.randn(1, 3, 224, 224, device="meta")).shape == (1, 730, 192)


def test_four_maps_are_given_after_the_quarters_of_the_depth() -> None:
    model = timm.create_model(NAME, features_only=True, embed_dim=32, device="meta")
    assert model.out_indices == [5, 11, 17, 23]


def test_an_image_smaller_than_a_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one patch, 16 x 16"):
        small()(images(1, 3, 64, 15))


def test_an_unknown_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="global_pool is 'cls'; expected one of"):
        small(global_pool="cls")
