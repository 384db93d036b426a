"""The zoo: its families for the README, and a page of all models with published and measured figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from _cards import LICENSES, Sources, markdown, models, orders, paragraph

from vssm.bench import summary, write_scatter
from vssm.models import IMAGENET, Family

STUDY = "docs/studies/zoo.csv"
# Of the rows that `tools/benchmark.py models` writes: heading, execution, mode, if of a single image, column, format.
SPEEDS = (
    ("inference, images/s, eager", "eager", "infer", False, "images_per_second", "{:,.0f}"),
    ("as a CUDA graph", "CUDA graph", "infer", False, "images_per_second", "{:,.0f}"),
    ("training, images/s, eager", "eager", "train", False, "images_per_second", "{:,.0f}"),
    ("as a CUDA graph", "CUDA graph", "train", False, "images_per_second", "{:,.0f}"),
    ("one image, ms, eager", "eager", "infer", True, "ms", "{:.1f}"),
    ("training, peak GiB", "eager", "train", False, "peak_gib", "{:.1f}"),
    ("GPU kernels, inference", "eager", "infer", False, "kernels", "{:.0f}"),
    ("GPU kernels, training step", "eager", "train", False, "kernels", "{:.0f}"),
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
    """A table for each family, one of the models they are measured beside, and the conditions of measurement."""
    rows = measurements(sources.root)
    headings = [heading for heading, *_ in SPEEDS] if rows else []
    speeds = {"": headings} | {name: cells(rows, name) for name in dict.fromkeys(row["model"] for row in rows)}
    sections = [section(sources, family, speeds) for family in sources.families]
    sections.append(baselines(sources, speeds))
    if rows:
        picture = f"![published accuracy over measured throughput](studies/{Path(STUDY).stem}.png)"
        conditions = f"Batch 128 at 224 px, {rows[0]['dtype']}. {summary.conditions(rows[0])}"
        sections.append(f"## How it was measured\n\n{conditions}\n{picture}\n")
    return "\n".join(sections)


def section(sources: Sources, family: Family, speeds: dict[str, list[str]]) -> str:
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
    return f"{title}\n\n{paragraph(facts)}\n{models(sources, family, speeds)}"


def baselines(sources: Sources, speeds: dict[str, list[str]]) -> str:
    """Models of timm's that are measured in the same run."""
    head = ["model", "top-1, published", *speeds[""], "source"]
    blank = [""] * len(speeds[""])
    rows = [
        [
            f"`{name}`",
            model["top1"],
            *speeds.get(name, blank),
            f"[arXiv {model['paper']}](https://arxiv.org/abs/{model['paper']})",
        ]
        for name, model in sources.results["baselines"].items()
    ]
    return f"## Beside them, of timm\n\n{markdown(head, rows)}"


def measurements(root: Path) -> list[dict[str, str]]:
    """The rows of the study, if it has been run."""
    return summary.read_rows(root / STUDY) if (root / STUDY).exists() else []


def cells(rows: list[dict[str, str]], name: str) -> list[str]:
    """What was measured of a model, in the order of SPEEDS; empty where it was not."""
    found = []
    for _, execution, mode, single, column, form in SPEEDS:
        values = [
            row[column]
            for row in rows
            if (row["model"], row["execution"], row["mode"], row["batch"] == "1") == (name, execution, mode, single)
        ]
        found.append(form.format(float(values[0])) if values and values[0] else "")
    return found


def points(sources: Sources) -> Iterator[tuple[str, str, float, float]]:
    """(group, model, images per second in inference as a CUDA graph, published ImageNet-1k top-1)."""
    groups = {name: ("of timm", model["top1"]) for name, model in sources.results["baselines"].items()}
    for family in sources.families:
        for name, variant in family.models.items():
            published = sources.numbers(family)["models"].get(variant.name, {}).get("published", {})
            if "top1" in published and family.data == IMAGENET:
                groups[name] = family.title, published["top1"]
    for row in measurements(sources.root):
        what = row["execution"], row["mode"], row["batch"] == "1", row["size"]
        if what == ("CUDA graph", "infer", False, "224") and row["model"] in groups:
            group, accuracy = groups[row["model"]]
            yield group, row["model"], float(row["images_per_second"]), accuracy


def draw_zoo(sources: Sources, path: Path) -> None:
    """Published accuracy over measured throughput."""
    write_scatter(
        path, points(sources), "images per second, inference as a CUDA graph", "ImageNet-1k top-1, published, %"
    )
