"""Initial weights have the official statistics, and weight decay the official groups."""

from __future__ import annotations

import pytest
import torch
from records import RECORDS
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from vssm.models import our_layout

INITIAL, DECAY = "init_stats_mean_std_min_max_seed0", "no_weight_decay_methods"


def every_record_with(what: str):
    return pytest.mark.parametrize("name", [name for name, record in RECORDS.items() if record.content.get(what)])


def official_parts(name: str, model: nn.Module) -> dict[str, list[tuple[str, Tensor]]]:
    """For each official tensor the names of our tensors that hold its values, each with a mask of where.

    Found with the family's own table: each official tensor is filled with its number and renamed.
    """
    manifest = RECORDS[name].manifest
    numbered = {official: torch.full(shape, float(i)) for i, (official, shape, _) in enumerate(manifest)}
    parts = {}
    for ours, numbers in our_layout(numbered, model).items():
        for number in numbers.unique():
            parts.setdefault(manifest[int(number)][0], []).append((ours, numbers == number))
    assert len(parts) == len(manifest)
    return parts


@every_record_with(INITIAL)
def test_initial_weights_have_the_official_statistics(name: str) -> None:
    torch.manual_seed(1)
    model = RECORDS[name].create()
    parameters = model.state_dict()
    parts = official_parts(name, model)
    for official, (mean, std, low, high) in RECORDS[name].content[INITIAL].items():
        values = torch.cat([parameters[ours][where] for ours, where in parts[official]]).double()
        if low == -2:  # one draw in 2^24 of the official trunc_normal_; ours leaves it out, so it is taken out here
            mean, std, low = mean + 2 / values.numel(), (std**2 - 4 / values.numel()) ** 0.5, -high
        # Both sides are samples: six standard errors of the difference of two means, and of two deviations.
        allowed = 6 * std * (2 / values.numel()) ** 0.5 + 1e-6
        assert abs(values.mean().item() - mean) <= allowed, f"{official}: mean {values.mean():.4g}, official {mean:.4g}"
        assert abs(values.std().item() - std) <= allowed, f"{official}: std {values.std():.4g}, official {std:.4g}"
        extremes = max(abs(values.min().item() - low), abs(values.max().item() - high))
        assert extremes <= 2.5 * std + 1e-6, f"{official}: {values.min():.4g} to {values.max():.4g}, {low} to {high}"


@every_record_with(DECAY)
def test_weight_decay_groups_are_the_official_ones(name: str) -> None:
    """Officially undecayed: one-dimensional tensors, names ending in .bias, and those of no_weight_decay()."""
    model = RECORDS[name].create(device="meta")
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    parameters = dict(model.named_parameters())
    methods = dict(RECORDS[name].content[DECAY])
    parts = official_parts(name, model)
    for official, shape, _ in RECORDS[name].manifest:
        spared = len(shape) == 1 or official.endswith(".bias") or official in methods.get("no_weight_decay", ())
        for ours, _ in parts[official]:
            if ours in parameters:  # and is no statistic of a batch norm
                assert (id(parameters[ours]) in decayed) is not spared, official
