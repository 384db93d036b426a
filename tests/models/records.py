"""The parity records of tests/parity: what the official implementations gave, and how to give our models the same
weights.

Beside the records of each family lies a file `<family>.yaml`:

records     the model that reproduces each, `arguments` for timm.create_model, and the absolute `tolerance`, scaled by
            the mean magnitude of what is compared where that is above one; `segmentor` where the record is of a whole
            segmentor, with which tests/mm/tasks/test_u_shape.py compares one that has the model for its backbone;
            `unsaved` names the convolutions, with their channels before and after, that the official model has and its
            files do not: 1 x 1, with values by their names, or as torch draws them in this order after its generator is
            given the seed `drawn_with`
traces      titles of traces (regular expressions), and the module of ours that gives the same: "stages.0" what it
            returns, "< stages.0" what it receives, "~ stages.0" its tokens in reverse, or the positions of its map,
            "2/4 stages.0" the second of four equal parts of its channels;
            null for what no module of ours returns. Titles of the form "module X output" need no entry: the family's
            renaming says which module X is. A record may have `traces` of its own, for the same titles or others.

The record of a backbone, without logits, is of the maps, with the norms that detection puts on them.
"""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "parity"
OUTPUT_NORM = re.compile(r"outnorm\d+\.")
sys.path.insert(0, str(FOLDER))

import parity  # noqa: E402


@dataclass(frozen=True)
class Record:
    """A record, and how to compare a model of ours with it."""

    name: str
    model: str
    arguments: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 5e-5
    segmentor: bool = False
    unsaved: dict[str, tuple[int, int]] = field(default_factory=dict)
    drawn_with: int | None = None
    traces: dict[str, str | None] = field(default_factory=dict)

    @property
    def content(self) -> dict[str, Any]:
        return _content(self.name)

    @property
    def cases(self) -> list[dict[str, Any]]:
        return self.content["cases"]

    @property
    def manifest(self) -> list[tuple[str, list[int], str]]:
        """Name, shape and dtype of each official tensor, without buffers that the official code computes."""
        computed = self.content.get("kept_buffers", ())
        return [entry for entry in self.content["manifest"] if entry[0] not in computed]

    @property
    def std_correction(self) -> int:
        """Of the recorded deviations: 0 for those of a population, 1 for those of a sample."""
        return 0 if self.content.get("std_is", "").startswith("population") else 1

    def official_weights(self) -> dict[str, Tensor]:
        """The weights that the record was made with, by their official names, but for the norms of detection."""
        names = (entry for entry in self.manifest if not OUTPUT_NORM.match(entry[0]))
        weights = {name: parity.tensor_for(name, shape) for name, shape, _ in names}
        # Of names for one parameter, the value of the one that is loaded last.
        for shared in self.content.get("shared_parameters", ()):
            weights.update(dict.fromkeys(shared["names"], weights[shared["effective"]]))
        return weights | self.unsaved_weights()

    @property
    def parameters(self) -> int:
        """Their number, as the official model counts it."""
        unsaved = sum(weight.numel() for weight in self.unsaved_weights().values())
        norms = (math.prod(shape) for name, shape, _ in self.content["manifest"] if OUTPUT_NORM.match(name))
        return self.content["params"] + unsaved - sum(norms)

    def unsaved_weights(self) -> dict[str, Tensor]:
        """Those of them that official files do not hold."""
        with torch.random.fork_rng():
            torch.manual_seed(self.drawn_with or 0)
            drawn = {name: nn.Conv2d(*channels, kernel_size=1) for name, channels in self.unsaved.items()}
        weights = {f"{name}.{key}": w for name, conv in drawn.items() for key, w in conv.state_dict().items()}
        if self.drawn_with is None:
            return {name: parity.tensor_for(name, weight.shape) for name, weight in weights.items()}
        return weights

    def create(self, **more: Any) -> nn.Module:
        """Our model, with its own initial weights."""
        model = timm.create_model(self.model, **{**self.arguments, **more})
        if not any(case.get("logits") for case in self.cases):
            model.prune_intermediate_layers(None, prune_norm=True)
        return model

    def where(self, title: str) -> list[str | None]:
        """The module of ours that a trace's title stands for, as in the family's file; empty where it says nothing."""
        matches = ((re.fullmatch(pattern, title), ours) for pattern, ours in self.traces.items())
        return [ours and found.expand(ours) for found, ours in matches if found][:1]


@cache
def _content(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def _records(file: Path) -> list[Record]:
    declared = yaml.safe_load(file.read_text())
    traces = declared.get("traces", {})
    records = declared["records"].items()
    return [Record(name, **{**how, "traces": traces | how.get("traces", {})}) for name, how in records]


RECORDS = {record.name: record for file in sorted(FOLDER.glob("*.yaml")) for record in _records(file)}


def official_weights(model: str) -> dict[str, Tensor]:
    """The weights of the first record of a model, by their official names."""
    return next(record for record in RECORDS.values() if record.model == model).official_weights()


def image(case: dict[str, Any]) -> Tensor:
    batch, channels, height, width = case["input"]
    return parity.image(height, width, batch, channels, case["seed"])


def layer_norm(channels: int, name: str) -> nn.LayerNorm:
    """The norm that the official detection backbone puts on an output, with the record's weights."""
    norm = nn.LayerNorm(channels)
    norm.load_state_dict({key: parity.tensor_for(f"{name}.{key}", (channels,)) for key in ("weight", "bias")})
    return norm


def assert_trace(actual: Tensor, trace: dict[str, Any], tolerance: float = 5e-5, std_correction: int = 1) -> None:
    """Compare a tensor with a trace of the official one: shape, mean, deviation, first and last values."""
    tolerance *= max(1, trace["abs_mean"])
    assert list(actual.shape) == trace["shape"], trace["name"]
    values = actual.double().flatten()
    for found, recorded in (
        (values[:8], trace["first"]),
        (values[-8:], trace["last"]),
        (values.mean()[None], [trace["mean"]]),
        (values.std(correction=std_correction)[None], [trace["std"]]),
        (values.abs().mean()[None], [trace["abs_mean"]]),
    ):
        difference = (found - torch.tensor(recorded, dtype=torch.float64)).abs().max().item()
        assert difference <= tolerance, f"{trace['name']}: differs by {difference:.1e}"
