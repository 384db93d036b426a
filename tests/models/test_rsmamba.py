"""What is particular to RSMamba: paths with shared parameters, one of them at random."""

import pytest
import timm
import torch

import vssm
from vssm.models.rsmamba import WithRandomPath
from vssm.scan import bidirectional, raster

SMALL = {"embed_dim": 32, "depth": 2, "img_size": 64, "num_classes": 5}


def test_the_random_paths_are_those_of_the_seed_layer_after_layer():
    torch.manual_seed(3)
    drawn = [torch.randperm(12) for _ in range(3)]
    for layer, path in enumerate(drawn):
        table = WithRandomPath(bidirectional, seed=3, layer=layer)(3, 4).table
        assert torch.equal(table[2].long(), path) and torch.equal(table[:2], bidirectional(3, 4).table)


def test_the_same_image_gets_the_same_logits_and_another_seed_others():
    torch.manual_seed(0)
    model = timm.create_model("rsmamba_base", **SMALL).eval()
    other = timm.create_model("rsmamba_base", seed=1, **SMALL).eval()
    other.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(image), model(image))
        assert not torch.allclose(model(image), other(image))


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        ({"scan_order": raster, "random_path": False}, 6_344_301),
        ({"random_path": False, "gated": False}, 6_344_301),
        ({"random_path": False}, 6_362_733),
        ({}, 6_385_773),
    ],
)
def test_path_types_have_the_official_number_of_parameters(arguments, parameters):
    model = timm.create_model("rsmamba_base", device="meta", **arguments)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_a_file_of_mmpretrain_loads_with_its_classifier(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("rsmamba_base", **SMALL).eval()
    official = vssm.models.official_state_dict(model)
    assert "backbone.layers.1.conv1d.weight" in official and "head.fc.weight" in official
    torch.save({"state_dict": official}, tmp_path / "rsmamba.pth")
    overlay = {"file": str(tmp_path / "rsmamba.pth"), "num_classes": 5}
    loaded = timm.create_model("rsmamba_base", pretrained=True, pretrained_cfg_overlay=overlay, **SMALL).eval()
    found = loaded.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())
