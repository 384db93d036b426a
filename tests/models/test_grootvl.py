"""GrootVL: the recorded trees, initial values, of which there is no record, and what its head and maps are."""

from __future__ import annotations

import math
import zlib

import pytest
import timm
import torch
import torch.nn.functional as F
from records import RECORDS, image
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from vssm.models import GrootVL, our_layout
from vssm.nn import TreeMixer
from vssm.ops import grid_tree

RECORD = RECORDS["grootvl_grootv_t_1k_224"]


def small() -> GrootVL:
    return GrootVL(dims=(16, 32), depths=(1, 2), num_classes=10)


def checksum(table: Tensor) -> int:
    """As in the record: of the sorted edges, each as its smaller end times the number of vertices plus the larger."""
    vertex, parent = table[:2, 1:].long()
    ids = torch.minimum(vertex, parent) * table.shape[1] + torch.maximum(vertex, parent)
    return zlib.crc32(ids.sort()[0].numpy().astype("<i8").tobytes())


@torch.inference_mode()
@pytest.mark.parametrize("case", range(len(RECORD.cases)))
def test_every_tree_is_the_official_one(case: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = RECORD.create().eval()
    model.load_state_dict(our_layout(RECORD.official_weights(), model))
    found = []

    def recording(x: Tensor) -> Tensor:
        trees = grid_tree(x)
        found.append([checksum(tree) for tree in trees])
        return trees

    monkeypatch.setattr("vssm.nn.tree.grid_tree", recording)
    model(image(RECORD.cases[case]))
    assert found == RECORD.cases[case]["trees_crc32"]


@torch.no_grad()
def test_initial_values() -> None:
    """Linear layers: deviation 0.02, biases 0. States: rates 1, step sizes from 0.001 to 0.1, D 1."""
    torch.manual_seed(0)
    model = timm.create_model("grootvl_tiny")
    steps = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std() == pytest.approx(0.02, rel=0.05), name
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5  # torch's own
            assert module.weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.15), name
        elif isinstance(module, TreeMixer):
            scan = module.scan
            assert not scan.A_log.any() and (scan.D == 1).all()
            for projection, inputs in ((scan.x_proj, scan.x_proj.shape[-1]), (scan.dt_proj, scan.rank)):
                assert projection.std() == pytest.approx((3 * inputs) ** -0.5, rel=0.1), name
                assert projection.abs().max() <= inputs**-0.5
            steps.append(F.softplus(scan.dt_bias).flatten())
    steps = torch.cat(steps).log10()
    assert steps.min() >= -3.01 and steps.max() <= -0.99 and steps.mean() == pytest.approx(-2, abs=0.05)


def test_rates_and_step_sizes_are_decayed_as_officially() -> None:
    """A_logs and dt_projs_bias are two-dimensional there; Ds, of one dimension, is not decayed."""
    model = small()
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        leaf = name.rpartition(".")[2]
        expected = leaf in ("A_log", "dt_bias") or (parameter.dim() > 1 and leaf != "D")
        assert (id(parameter) in decayed) is expected, name


@torch.no_grad()
def test_every_map_is_normed() -> None:
    """Also the last one: officially dense heads read what the classifier's head does."""
    maps = small().eval().forward_intermediates(torch.randn(1, 3, 64, 96), intermediates_only=True)
    for each in maps:
        assert each.mean(1).abs().max() < 1e-5
        assert each.var(1, correction=0).mean() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_trees_follow_the_features_under_autocast(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The narrow map that is scanned is the one that is joined, and states stay in float32."""
    seen = []
    monkeypatch.setattr("vssm.nn.tree.grid_tree", lambda x: seen.append(x.dtype) or grid_tree(x))
    mixer = TreeMixer(8)
    states = []
    mixer.scan.register_forward_hook(lambda module, inputs, output: states.append(output[0].dtype))
    with torch.autocast("cpu", dtype):
        assert mixer(torch.randn(1, 4, 5, 8)).dtype == dtype
    assert seen == [dtype] and states == [torch.float32]


def test_the_head_goes_with_its_classifier() -> None:
    model = small().eval()
    assert (model.num_features, model.head_hidden_size) == (32, 48)
    assert model.forward_head(torch.randn(2, 3, 4, 32), pre_logits=True).shape == (2, 48)
    model.reset_classifier(7)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    model.prune_intermediate_layers([0])
    assert not any(name.startswith("head.") for name, _ in model.named_parameters())
    model.reset_classifier(5, "avg")
    assert model.head_hidden_size == 16 and model(torch.randn(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"dims": (80, 160)}, "dims has 2 entries and depths 4; expected as many, one for each stage"),
        ({"expansion": 0.001}, "expansion is 0.001; expected a ratio that leaves at least one of 80 channels"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        timm.create_model("grootvl_tiny", device="meta", **arguments)
