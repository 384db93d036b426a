"""The zoo: its families for the README, and a page of all models with published and measured figures."""

from __future__ import annotations

import hashlib
import itertools
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from _cards import LICENSES, Sources, markdown, models, orders, paragraph, top1

from vssm.bench import summary, write_scatter
from vssm.models import IMAGENET, Family

PICTURE = "docs/studies/zoo.png"
# Of the rows that `tools/benchmark.py models` writes: heading, execution, mode, if of a single image, column, format.
SPEEDS = (
    ("inference, images/s, eager", "eager", "infer", False, "images_per_second", "{:,.0f}"),
    ("as a CUDA graph", "CUDA graph", "infer", False, "images_per_second", "{:,.0f}"),
    ("training, images/s, eager", "eager", "train", False, "images_per_second", "{:,.0f}"),
    ("as a CUDA graph", "CUDA graph", "train", False, "images_per_second", "{:,.0f}"),
    ("one image, ms, eager", "eager", "infer", True, "ms", "{:.1f}"),
    ("as a CUDA graph", "CUDA graph", "infer", True, "ms", "{:.1f}"),
    ("peak GiB, inference", "eager", "infer", False, "peak_gib", "{:.2f}"),
    ("training", "eager", "train", False, "peak_gib", "{:.1f}"),
    ("GPU kernels, inference", "eager", "infer", False, "kernels", "{:,.0f}"),
    ("of a block", "eager", "infer", False, "kernels_per_block", "{:.0f}"),
    ("GPU kernels, training step", "eager", "train", False, "kernels", "{:,.0f}"),
    ("of a block", "eager", "train", False, "kernels_per_block", "{:.0f}"),
)


def families(sources: Sources) -> str:
    """The list of families."""
    rows = []
    for family in sources.families:
        entries = [entry for entry in sources.numbers(family)["models"].values()]
        accuracies = [entry["published"]["top1"] for entry in entries if "top1" in entry.get("published", {})]
        other = "" if family.data == IMAGENET or not accuracies else f" ({family.data.title})"
        rows.append(
            [
                f"[{family.title}](model_cards/{family.name}.md)",
                len(entries),
                f"{spread(entry['parameters'] / 1e6 for entry in entries)} M",
                f"{spread(accuracies, 1)}{other}" if accuracies else None,
                ", ".join(f"`{name}`" for name in orders(family)),
                LICENSES.get(family.license, family.license),
                f"[{family.paper}](https://arxiv.org/abs/{family.paper}), [code]({family.repository})",
            ]
        )
    head = ["family", "models", "parameters", "top-1, published", "scan orders", "licence of the weights", "paper"]
    return markdown(head, rows)


def spread(values: Iterable[float], digits: int = 0) -> str:
    """The lowest and the highest."""
    values = list(values)
    return " to ".join(dict.fromkeys(f"{value:.{digits}f}" for value in (min(values), max(values))))


def zoo(sources: Sources) -> str:
    """What was measured, if anything was, then a table for each family, and one of the models they are beside."""
    sections = [speeds(sources)] if runs(sources.root) else []
    sections += [section(sources, family) for family in sources.families]
    return "\n".join([*sections, baselines(sources)])


def speeds(sources: Sources) -> str:
    """The picture, and of every run a table and its conditions; compare within a run."""
    text = (
        "Models that are slower than timm's are listed too. Compare within one table: each is of one run on one GPU, "
        "and eager numbers are those of its host, where Python launches the kernels. Kernels are counted in eager "
        "mode, and those of stem and head are shared out among the blocks."
    )
    measured = {row["model"] for rows in runs(sources.root) for row in rows}
    if rest := [name for family in sources.families for name in family.measured if name not in measured]:
        text += f" Not measured yet: {', '.join(f'`{name}`' for name in rest)}."
    picture = "![published accuracy over measured throughput](studies/zoo.png)\n"
    tables = [speed_table(sources, rows) for rows in runs(sources.root)]
    return "\n".join(["## Speed beside models of timm's\n", paragraph(text), picture, *tables])


def speed_table(sources: Sources, rows: list[dict[str, str]]) -> str:
    """All models of a run, in the order in which they were measured."""
    scores = {name: top1(family, entry) for name, (family, entry) in published(sources).items()}
    scores |= {name: model["top1"] for name, model in sources.results["baselines"].items()}
    lines = [
        [f"`{name}`", scores.get(name), *cells([row for row in rows if row["model"] == name])]
        for name in dict.fromkeys(row["model"] for row in rows)
    ]
    table = markdown(["model", "top-1, published", *(heading for heading, *_ in SPEEDS)], lines)
    first = rows[0]
    batch = max(int(row["batch"]) for row in rows)
    return f"{table}\nBatch {batch} at {first['size']} px, {first['dtype']}. {summary.conditions(first)}"


def section(sources: Sources, family: Family) -> str:
    tasks = dict.fromkeys(
        recipe.kind.get("task", family.data.title)
        for recipe in sources.recipes
        if recipe.family is family and recipe.published
    )
    facts = (
        f"[arXiv {family.paper}](https://arxiv.org/abs/{family.paper}), [official code]({family.repository}), weights: "
        f"{LICENSES.get(family.license, family.license)}. Scan orders: "
        f"{', '.join(f'`{name}`' for name in orders(family)) or 'none'}. Recipes: {'; '.join(tasks)}."
    )
    title = f"## [{family.title}](../model_cards/{family.name}.md)"
    return f"{title}\n\n{paragraph(facts)}\n{models(sources, family)}"


def baselines(sources: Sources) -> str:
    """Models of timm's that are measured in the same runs."""
    rows = [
        [f"`{name}`", model["top1"], f"[arXiv {model['paper']}](https://arxiv.org/abs/{model['paper']})"]
        for name, model in sources.results["baselines"].items()
    ]
    return f"## Beside them, of timm\n\n{markdown(['model', 'top-1, published', 'source'], rows)}"


def runs(root: Path) -> list[list[dict[str, str]]]:
    """The rows of each measurement of the zoo: docs/studies/zoo.csv, or zoo_1.csv and so on, of a GPU each."""
    return [summary.read_rows(file) for file in sorted((root / PICTURE).parent.glob("zoo*.csv"))]


def cells(rows: list[dict[str, str]]) -> list[str]:
    """What was measured of a model, in the order of SPEEDS; empty where it was not."""
    found = {(row["execution"], row["mode"], row["batch"] == "1"): row for row in rows}
    values = [(found.get(tuple(run), {}).get(column), form) for _, *run, column, form in SPEEDS]
    return [form.format(float(value)) if value else "" for value, form in values]


def published(sources: Sources) -> dict[str, tuple[Family, dict[str, Any]]]:
    """Each name's family and published numbers."""
    return {
        name: (family, sources.numbers(family)["models"].get(variant.name, {}).get("published", {}))
        for family in sources.families
        for name, variant in family.models.items()
    }


def points(sources: Sources) -> Iterator[tuple[str, str, float, float]]:
    """(group, model, images per second in inference as a CUDA graph, published ImageNet-1k top-1)."""
    groups = {name: ("of timm", model["top1"]) for name, model in sources.results["baselines"].items()}
    for name, (family, entry) in published(sources).items():
        if "top1" in entry and family.data == IMAGENET:
            groups[name] = family.title, entry["top1"]
    speeds: dict[str, list[float]] = {}
    for row in itertools.chain(*runs(sources.root)):
        if (
            (row["execution"], row["mode"]) == ("CUDA graph", "infer")
            and row["batch"] != "1"
            and row["model"] in groups
        ):
            speeds.setdefault(row["model"], []).append(float(row["images_per_second"]))
    for name, found in speeds.items():  # those of several runs at their mean
        group, accuracy = groups[name]
        yield group, name, statistics.mean(found), accuracy


def draw_zoo(sources: Sources, path: Path) -> None:
    """Published accuracy over measured throughput."""
    heading = "images per second, inference as a CUDA graph"
    write_scatter(path, points(sources), heading, "ImageNet-1k top-1, published, %", contents(sources))


def is_drawn(sources: Sources, path: Path) -> bool:
    """Whether a picture is there and shows what is measured and published now."""
    return path.exists() and contents(sources).encode() in path.read_bytes()


def contents(sources: Sources) -> str:
    """Short, and another one for other points."""
    return hashlib.sha256(repr(list(points(sources))).encode()).hexdigest()
