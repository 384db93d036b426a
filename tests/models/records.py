"""The parity records of tests/parity: what the official implementations gave, and how to give our models the same
weights."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "parity"
sys.path.insert(0, str(FOLDER))

import parity  # noqa: E402

# The record of every model that results.yaml claims one for.
RECORDS = {
    name: model["parity"]
    for family in yaml.safe_load((ROOT / "model_cards" / "results.yaml").read_text())["families"].values()
    for name, model in family["models"].items()
    if "parity" in model
}


@cache
def record(model: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{RECORDS[model]}.json").read_text())


CASES = [(model, case) for model in RECORDS for case in range(len(record(model)["cases"]))]


def official_weights(model: str) -> dict[str, Tensor]:
    """The weights that the record was made with, by their official names."""
    return {name: parity.tensor_for(name, shape) for name, shape, _ in record(model)["manifest"]}


def image(case: dict[str, Any]) -> Tensor:
    batch, channels, height, width = case["input"]
    return parity.image(height, width, batch, channels, case["seed"])


def layer_norm(channels: int, name: str) -> nn.LayerNorm:
    """The norm that the official detection backbone puts on an output, with the record's weights."""
    norm = nn.LayerNorm(channels)
    norm.load_state_dict({key: parity.tensor_for(f"{name}.{key}", (channels,)) for key in ("weight", "bias")})
    return norm


def assert_trace(actual: Tensor, trace: dict[str, Any], tolerance: float = 5e-5) -> None:
    """Compare a tensor with a trace of the official one: shape, mean, first and last values."""
    assert list(actual.shape) == trace["shape"], trace["name"]
    values = actual.double().flatten()
    for found, recorded in (
        (values[:8], trace["first"]),
        (values[-8:], trace["last"]),
        (values.mean()[None], [trace["mean"]]),
        (values.std()[None], [trace["std"]]),
        (values.abs().mean()[None], [trace["abs_mean"]]),
    ):
        difference = (found - torch.tensor(recorded, dtype=torch.float64)).abs().max().item()
        assert difference <= tolerance, f"{trace['name']}: differs by {difference:.1e}"
