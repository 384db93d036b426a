"""Mamba2D: initial values and weight decay, of which there is no record; what tells its mixer from others."""

from __future__ import annotations

import math
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from torch import nn

from vssm.models import Mamba2D, load_checkpoint, official_state_dict
from vssm.models.mamba2d import MlpHead
from vssm.nn import Attention, WavefrontMixer


def test_the_first_stages_scan_by_turns_from_both_corners_and_the_others_attend() -> None:
    model = Mamba2D(dims=(16, 16, 32), depths=(3, 1, 2), scanned_stages=2, state=5)
    mixers = [[block.mixer for block in stage.blocks] for stage in model.stages]
    assert [[type(mixer) for mixer in stage] for stage in mixers] == [
        3 * [WavefrontMixer],
        [WavefrontMixer],
        2 * [Attention],
    ]
    assert [mixer.scan.reverse for mixer in mixers[0]] == [False, True, False]
    assert all(block.residual_scale is not None for stage in model.stages for block in stage.blocks)


def test_the_first_version() -> None:
    model = timm.create_model("mamba2d_v1_tiny", device="meta")
    for i, stage in enumerate(model.stages):
        assert isinstance(stage.norm, nn.Identity)
        for block in stage.blocks:
            assert (block.residual_scale is not None) == (i > 1)
            if i < 2:
                assert not block.mixer.scan.reverse and block.mixer.scan.x_proj.bias is not None
                assert block.mixer.out_proj.in_features == 2 * stage.channels
            else:
                assert block.mixer.rotary is None and isinstance(block.mixer.q_norm, nn.Identity)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"dims": (64, 128, 320)}, "dims has 3 entries and depths 4; expected as many, one for each stage"),
        ({"dims": (64, 128, 320, 500)}, "dims has 500 channels where maps are attended to; expected a multiple of 32"),
        ({"global_pool": "catavgmax"}, "global_pool is 'catavgmax', which gives more channels than it is given"),
        ({"state": 0}, "state is 0; expected a whole number from 1"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        timm.create_model("mamba2d_tiny", device="meta", **arguments)


def test_initial_values() -> None:
    """torch's own, but for the scans: rates 1 to 16, the same step sizes of 0.001 to 0.1 both ways, D 1."""
    torch.manual_seed(0)
    model = timm.create_model("mamba2d_nano")
    for name, parameter in model.named_parameters():
        layer, value = model.get_submodule(name.rpartition(".")[0]), parameter.detach()
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = layer.weight[0].numel() ** -0.5
            assert value.abs().max() <= bound, name
            assert value.std() == pytest.approx(bound / math.sqrt(3), rel=0.4), name
        elif name.endswith("dt_bias"):
            assert torch.equal(value[0], value[1])
            steps = F.softplus(value).log10()
            assert steps.min() >= -3.01 and steps.max() <= -0.99
        elif name.endswith("dt_proj"):
            assert value.abs().max() <= value.shape[2] ** -0.5
        elif name.endswith("A_log"):
            torch.testing.assert_close(value.exp(), torch.arange(1.0, 17).expand_as(value))
        else:  # norms, D, scales
            assert value.unique().tolist() == [0.0 if name.endswith("bias") else 1.0], name


def test_weight_decay_is_that_of_layers_alone() -> None:
    """Rates have none in the official code, nor have tensors of one dimension, as the steps' biases are there."""
    model = timm.create_model("mamba2d_nano", device="meta")
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    spared = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = parameter.dim() == 1 or name.endswith(("A_log", "dt_bias"))
        assert (id(parameter) in spared) == expected, name


@torch.no_grad()
def test_the_second_block_is_the_first_of_a_turned_map() -> None:
    """Where the local path, which is not turned, is left out."""
    torch.manual_seed(0)
    forwards, backwards = WavefrontMixer(8, state=3), WavefrontMixer(8, state=3, reverse=True)
    backwards.load_state_dict(forwards.state_dict())
    x = torch.randn(2, 4, 5, 8)
    torch.testing.assert_close(backwards(x), forwards(x.flip(1, 2)).flip(1, 2))


def test_the_classifier_without_pooling_and_without_classes() -> None:
    head = MlpHead(8, 10, pool_type="avg", drop_rate=0.0, input_fmt="NHWC")
    x = torch.randn(2, 3, 4, 8)
    assert head(x).shape == (2, 10) and head(x, pre_logits=True).shape == (2, 32)
    head.reset(0, "")
    assert head(x).shape == (2, 3, 4, 32)
    head.reset(5, "avg")
    assert head(x).shape == (2, 5)


def test_official_backbones_by_themselves(tmp_path) -> None:
    """Files of detectors hold a backbone with or without its prefix; a classifier's lies beside it."""
    small = {"dims": (16, 32), "depths": (2, 1), "scanned_stages": 1, "state": 3, "num_classes": 3}
    model, other = Mamba2D(**small), Mamba2D(**small)
    official = official_state_dict(model)
    assert {name.split(".")[0] for name in official} == {"backbone", "norm", "head"}
    bare = {re.sub(r"^backbone\.", "", name): value for name, value in official.items()}
    torch.save({"state_dict": bare}, tmp_path / "bare.ckpt")
    load_checkpoint(other, tmp_path / "bare.ckpt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
