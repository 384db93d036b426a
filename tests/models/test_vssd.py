"""VSSD: initial values and weight decay, of which there is no record; what tells its mixer from others."""

from __future__ import annotations

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from torch import Tensor

from vssm.models import VSSD
from vssm.nn import Attention, NoncausalSSD
from vssm.ops import noncausal_ssd


def test_the_last_stage_attends_and_the_others_have_states() -> None:
    model = VSSD(dims=(16, 32, 64), depths=(1, 2, 1), heads=(2, 4, 8), state=5)
    mixers = [block.mixer for stage in model.stages for block in stage.blocks]
    assert [type(mixer) for mixer in mixers] == [NoncausalSSD, NoncausalSSD, NoncausalSSD, Attention]
    assert [mixer.heads for mixer in mixers] == [2, 4, 4, 8]
    assert {mixer.state for mixer in mixers[:3]} == {5}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"heads": (2, 4)}, "dims has 4 entries and heads 2; expected as many, one for each stage"),
        ({"heads": (3, 4, 8, 16)}, "3 heads share 128 channels; expected a number of heads that divides them"),
        ({"heads": 4}, "heads is 4; expected a list, each entry a whole number from 1"),
        ({"state": 0}, "state is 0; expected a whole number from 1"),
        ({"expansion": 0.001}, "expansion is 0.001; expected a ratio that leaves at least one of 64 channels"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        timm.create_model("vssd_tiny", device="meta", **arguments)


def test_initial_values() -> None:
    """Linear layers: deviation 0.02, biases 0. States: log A uniform for A of 1 to 16, steps of 0.001 to 0.1, D 1."""
    torch.manual_seed(0)
    model = timm.create_model("vssd_small")
    of_heads: dict[str, list[Tensor]] = {"A_log": [], "D": [], "dt_bias": []}
    for name, parameter in model.named_parameters():
        parameter, (layer, _, leaf) = parameter.detach(), name.rpartition(".")
        if leaf in of_heads:
            of_heads[leaf].append(parameter)
        elif isinstance(model.get_submodule(layer), torch.nn.Linear):
            deviation = 0.02 if leaf == "weight" else 0.0
            assert abs(parameter.mean()) < 0.001 and parameter.std() == pytest.approx(deviation, rel=0.05), name
        elif isinstance(model.get_submodule(layer), torch.nn.Conv2d) and leaf == "weight":
            bound = parameter[0].numel() ** -0.5  # torch's own
            assert parameter.abs().max() <= bound
            assert parameter.std() == pytest.approx(bound / math.sqrt(3), rel=0.15), name
    A_log, D, dt_bias = (torch.cat(values) for values in of_heads.values())
    assert len(A_log) == 3 * 2 + 4 * 4 + 21 * 8
    A, log_steps = A_log.exp(), F.softplus(dt_bias).log10()
    assert A.min() >= 1 and A.max() <= 16 and A.mean() == pytest.approx(8.5, abs=1.3)
    assert log_steps.min() >= -3.01 and log_steps.max() <= -0.99 and log_steps.mean() == pytest.approx(-2, abs=0.2)
    assert D.unique().tolist() == [1]


def test_weight_decay_is_that_of_tensors_with_more_than_one_dimension() -> None:
    """A, D and the steps' biases, one number a head, have none, as in the official code."""
    model = timm.create_model("vssd_micro", device="meta")
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    spared = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in spared) == (parameter.dim() == 1), name


@torch.no_grad()
def test_the_gate_is_linear_and_comes_after_the_norm() -> None:
    """A gate of z = -2 turns the output around and doubles it: no SiLU, no norm behind it."""
    mixer, x = NoncausalSSD(4, heads=2, state=3).eval(), torch.randn(1, 3, 5, 4)
    weight = mixer.in_proj.weight
    weight[:8] = 0
    weight[:8, 0] = 1
    outputs = []
    for gate in (1.0, -2.0):
        weight[:8, 0] = gate
        outputs.append(mixer(x))
    torch.testing.assert_close(outputs[1], -2 * outputs[0])


@torch.no_grad()
def test_every_position_sees_every_other() -> None:
    """Beyond the reach of convolutions, and as much from far as from near."""
    mixer, x = NoncausalSSD(4, heads=2, state=3), torch.zeros(1, 12, 12, 4)
    x[0, 0, 0] = torch.randn(4)
    changed = (mixer(x + 1) - mixer(torch.ones_like(x)))[0, 4:].flatten(0, 1)
    assert changed[:, 0].abs().min() > 0
    torch.testing.assert_close(changed[13:17], changed[13:14].expand(4, -1))


@torch.no_grad()
def test_the_state_is_a_sum_and_no_mean() -> None:
    """Without the skip, a map of one colour that is four times as large gives outputs four times as large."""
    mixer = NoncausalSSD(4, heads=2, state=3)
    mixer.norm = torch.nn.Identity()
    mixer.D.zero_()
    mixer.conv.weight[:, :, :, :2] = mixer.conv.weight[:, :, :2] = 0  # one pixel to the other
    mixer.conv.weight[:, :, 2, 2] = 0
    mixer.conv.weight[:, :, 1, 1] = 1
    small, large = (mixer(torch.ones(1, side, side, 4)) for side in (3, 6))
    torch.testing.assert_close(large[0, 0, 0], 4 * small[0, 0, 0])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_large_map_under_autocast_is_right_where_a_sum_in_float16_is_infinite(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    mixer, x = NoncausalSSD(8, heads=2, state=4), 5 * torch.randn(1, 64, 64, 8)
    mixer.in_proj.weight.mul_(10)
    mixer.dt_bias.fill_(3)
    mixer.A_log.fill_(math.log(16))
    states = []

    def recording(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, *others: Tensor) -> Tensor:
        added = (A * F.softplus(delta.float() + 3))[..., None] * u.float()
        states.append(B.float().mT @ added.flatten(2))
        return noncausal_ssd(u, delta, A, B, *others)

    monkeypatch.setattr("vssm.nn.ssd.noncausal_ssd", recording)
    expected = mixer(x)
    with torch.autocast("cpu", dtype):
        found = mixer(x)
    assert states[0].abs().max() > torch.finfo(torch.float16).max
    assert (found - expected).norm() <= 0.05 * expected.norm()
