"""Hydra: its mixer against the records, of which there is none of a model; initial values; what makes it Hydra."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
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


@torch.no_grad()
def test_groups_of_heads_and_learned_first_states() -> None:
    """As a loop over the steps says it: consecutive heads share B and C, the backward pass begins in the same states,
    and the first token of a pass still receives nothing from it."""
    official = HydraMixer(192, state=32, groups=2, bias=True, learned_start=True)  # which calls `start` init_states
    assert sum(parameter.numel() for parameter in official.parameters()) == 293_982
    heads, state, groups, tokens = 4, 3, 2, 7
    mixer = HydraMixer(16, heads, state, groups=groups, bias=True, learned_start=True).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in mixer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3)
    x = torch.randn(2, tokens, 16, generator=generator, dtype=torch.float64)

    z, uBC, steps = mixer.in_proj(x).split([32, 32 + 4 * groups * state, 2 * heads], -1)
    conv = F.conv1d(uBC.mT, mixer.conv.weight[:, :, 0], mixer.conv.bias, padding=3, groups=uBC.shape[-1])
    u, *BC = F.silu(conv.mT).split([32, *[groups * state] * 4], -1)
    u = u.unflatten(-1, (heads, -1))
    y = (mixer.diagonal(u.flatten(2)) + mixer.D)[..., None] * u
    for walk, B, C, step in zip(
        (range(tokens), range(tokens)[::-1]), BC[::2], BC[1::2], steps.chunk(2, -1), strict=True
    ):
        delta = F.softplus(step + mixer.dt_bias)
        B, C = (part.unflatten(-1, (groups, -1)).repeat_interleave(heads // groups, 2) for part in (B, C))
        h, before = mixer.start.expand(2, -1, -1, -1), torch.zeros_like(u[:, 0])
        for t in walk:
            y[:, t] += before
            decay = torch.exp(-delta[:, t] * mixer.A_log.exp())[..., None, None]
            h = decay * h + (delta[:, t, :, None] * u[:, t])[..., None] * B[:, t, :, None]
            before = (h * C[:, t, :, None]).sum(-1)
    expected = mixer.out_proj(mixer.norm(y.flatten(2)) * F.silu(z))
    torch.testing.assert_close(mixer(x, 1, tokens), expected)


def test_groups_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="3 groups share 4 heads; expected a number of groups that divides them"):
        HydraMixer(16, heads=4, groups=3)


def test_a_convolution_without_a_middle_tap_is_refused() -> None:
    with pytest.raises(ValueError, match="conv_width is 4; expected an odd number of taps"):
        HydraMixer(8, heads=2, conv_width=4)
