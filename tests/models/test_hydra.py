"""Hydra: its mixer against the records, of which there is none of a model; initial values; what makes it Hydra."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import yaml
from records import FOLDER, assert_trace, parity
from torch import Tensor

from vssm.nn import HydraMixer

MIXERS = yaml.safe_load((FOLDER / "hydra.yaml").read_text())["mixers"]


def recorded(name: str) -> tuple[HydraMixer, list[dict[str, Any]]]:
    """A mixer with its record's weights, and the record's cases."""
    record = json.loads((FOLDER / f"{name}.json").read_text())
    mixer = HydraMixer(**MIXERS[name]).eval()
    assert sum(parameter.numel() for parameter in mixer.parameters()) == record["params"]
    state = {}
    for official, shape, _ in record["manifest"]:
        ours = official.removeprefix("matrix_mixer.").replace("conv1d", "conv").replace("fc_D", "diagonal")
        weight = parity.tensor_for(official, shape)
        state[ours] = weight.unsqueeze(2) if ours == "conv.weight" else weight
    mixer.load_state_dict(state)
    return mixer, record["cases"]


@torch.no_grad()
@pytest.mark.parametrize("name", MIXERS)
def test_the_mixer_gives_what_the_official_one_gives(name: str) -> None:
    mixer, cases = recorded(name)
    seen: dict[str, Tensor] = {}
    for title, module, which in (("in_proj output", mixer.in_proj, 1), ("norm (gated", mixer.out_proj, 0)):
        module.register_forward_hook(
            lambda module, inputs, output, title=title, which=which: seen.update({title: (inputs[0], output)[which]})
        )
    for case in cases:
        batch, _, length, dim = case["input"]
        seen["output (B,L,D)"] = mixer(parity.image(length, dim, batch, 1, case["seed"])[:, 0], 1, length)
        assert len(case["features"]) == len(seen)
        for trace in case["features"]:
            (output,) = (value for title, value in seen.items() if trace["name"].startswith(title))
            assert_trace(output.reshape(trace["shape"]), trace, tolerance=2e-5)


@torch.no_grad()
def test_the_matrix_is_quasiseparable() -> None:
    """Every block below the diagonal has at most the rank of the state, and so has every one above it; the whole has
    not. The matrix is that of one head: where u, B, C and the steps are held, outputs are linear in u."""
    from vssm.ops import ssd

    tokens, state = 12, 3
    generator = torch.Generator().manual_seed(0)
    delta, B, C = (
        torch.randn(1, tokens, 2, *size, generator=generator, dtype=torch.float64)
        for size in ((1,), (1, state), (1, state))
    )
    both_ways = torch.stack([torch.arange(tokens), torch.arange(tokens).flip(0)]).int()
    each_alone = torch.eye(tokens, dtype=torch.float64).view(1, tokens, 1, tokens)
    A = -torch.ones(2, 1, dtype=torch.float64)
    matrix = ssd(each_alone, delta, A, B, C, order=both_ways, shift=True, merge=True)[0, :, 0]
    assert not matrix.diagonal().any()
    assert torch.linalg.matrix_rank(matrix) > 2 * state
    for cut in range(1, tokens):
        for block in (matrix[cut:, :cut], matrix[:cut, cut:]):
            assert torch.linalg.matrix_rank(block, rtol=1e-9) == min(state, cut, tokens - cut)


def test_initial_values() -> None:
    torch.manual_seed(0)
    mixer = HydraMixer(768)
    steps = torch.nn.functional.softplus(mixer.dt_bias)
    assert not mixer.A_log.any() and (mixer.D == 1).all()
    assert mixer.heads == 24 and steps.min() >= 1e-3 - 1e-9 and steps.max() <= 0.1 + 1e-6
