"""The rows of a study, one a training, summed up a model: as a table for a document."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

# Column, its head in a document, and how its number is written there.
COSTS = (
    ("parameters_m", "parameters, M", "{:.2f}"),
    ("infer_images_per_second", "inference, images/s", "{:,.0f}"),
    ("train_images_per_second", "training, images/s", "{:,.0f}"),
    ("infer_peak_gib", "inference, peak GiB", "{:.2f}"),
    ("train_peak_gib", "training, peak GiB", "{:.2f}"),
)


@dataclass(frozen=True)
class Summary:
    """One model of a study.

    Args:
        label: its name.
        scores: top-1 accuracy of each seed, in percent.
        costs: the columns of `COSTS`; None where one could not be measured.
    """

    label: str
    scores: tuple[float, ...]
    costs: dict[str, float | None]

    @property
    def mean(self) -> float:
        return statistics.mean(self.scores)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a study's CSV."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def summarise(rows: Iterable[Mapping[str, object]]) -> list[Summary]:
    """One summary a label, in the order of the rows.

    >>> costs = {name: 1 for name, _, _ in COSTS}
    >>> rows = [{"label": "a", "seed": seed, "top1": 90 + seed, **costs} for seed in range(3)]
    >>> summarise(rows)[0].mean
    91.0
    """
    by_label: dict[str, list[Mapping[str, object]]] = {}
    for row in rows:
        by_label.setdefault(str(row["label"]), []).append(row)
    return [
        Summary(
            label,
            tuple(float(row["top1"]) for row in group),
            {name: None if group[0][name] in (None, "") else float(group[0][name]) for name, _, _ in COSTS},
        )
        for label, group in by_label.items()
    ]


def study_table(rows: list[Mapping[str, object]]) -> str:
    """A Markdown table of the models, and below it what was measured with what.

    The spread over seeds is the lowest and the highest: of three numbers a deviation says less.
    """
    models = summarise(rows)
    columns = [column for column in COSTS if any(model.costs[column[0]] is not None for model in models)]
    lines = [["model", "top-1, mean (lowest to highest)", *(head for _, head, _ in columns)]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for model in models:
        spread = f"{model.mean:.1f} % ({min(model.scores):.1f} to {max(model.scores):.1f})"
        lines.append([model.label, spread, *(_text(model.costs[name], form) for name, _, form in columns)])
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    first = rows[0]
    return (
        f"{table}\n"
        f"{max(len(model.scores) for model in models)} seeds a model. Throughput and peak memory: each model alone, "
        f"{first['batch']} images of {first['size']} x {first['size']} pixels at once, {first['dtype']}. "
        f"{first['device']}, torch {first['torch']}, triton {first['triton']}, timm {first['timm']}, "
        f"commit {first['commit']}:\n\n"
        f"    {first['command']}\n"
    )


def _text(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
