"""What documents say of families: tables, cards and NOTICE, from their declarations and model_cards/results.yaml."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import _recipes
from timm.data import IMAGENET_DEFAULT_MEAN

import vssm
from vssm.files import file_stem
from vssm.models import FAMILIES, IMAGENET, Family
from vssm.scan import ScanOrder, order_named, order_names
from vssm.viz import draw_order

NONCOMMERCIAL = {"cc-by-nc-sa-4.0": "CC-BY-NC-SA-4.0 (non-commercial)"}
LICENSES = NONCOMMERCIAL | {"apache-2.0": "Apache-2.0", "mit": "MIT", "unknown": "no licence published"}
# What a new card says where its author has to write; tests look for it.
UNWRITTEN = "TO BE WRITTEN"
GRID = (8, 10)  # tokens, of the pictures of orders
TOLERANCE = 5e-5  # of records that state no other: that of tests/models/records.py

FRONT_MATTER = """---
license: {license}
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- image-feature-extraction
- timm
- vssm
- mamba
- state-space-model
datasets:
- {data}
---
"""
NEW_CARD = """{front_matter}
# {title}

{unwritten}: what kind of model it is, in a paragraph.

<!-- table: card {name} -->
<!-- end of table -->

## Limits

{unwritten}: what users should know, such as differences from the paper.

## Citation

```bibtex
@article{{{name},
  title = {{{unwritten}}},
  author = {{{unwritten}}},
}}
```
"""
USE = """```python
import timm
import torch
import vssm  # registers the models with timm

# {weights}
backbone = timm.create_model("{name}", features_only=True).eval()
for feature_map in backbone(torch.randn(1, 3, 224, 160)):
    print(tuple(feature_map.shape))
```

```text
{shapes}
```
"""


@dataclass(frozen=True)
class Sources:
    """Where documents take their facts from.

    Args:
        root: of the repository.
        results: model_cards/results.yaml.
        recipes: the configs that `make cards` writes.
    """

    root: Path
    results: dict[str, Any]
    recipes: list[_recipes.Recipe]

    @classmethod
    def read(cls, root: Path) -> Sources:
        """Raises ValueError where results.yaml has a family or a model that no file of vssm/models declares."""
        results = _recipes.read_yaml(root / "model_cards" / "results.yaml")
        for family, entry in results["families"].items():
            _recipes.check("model_cards/results.yaml", family in FAMILIES, f"family {family!r} in vssm/models")
            for model in entry["models"]:
                known = model in {variant.name for variant in FAMILIES[family].variants}
                _recipes.check(f"model_cards/results.yaml, {family}", known, f"variant {model!r} in vssm/models")
        recipes = root / "configs" / "recipes.yaml"
        return cls(root, results, list(_recipes.recipes(recipes, results)) if recipes.exists() else [])

    @property
    def families(self) -> list[Family]:
        """Those with results, the oldest paper first."""
        known = [family for family in FAMILIES.values() if family.name in self.results["families"]]
        return sorted(known, key=lambda family: family.paper)

    def numbers(self, family: Family) -> dict[str, Any]:
        return self.results["families"][family.name]

    def recorded(self, family: Family) -> dict[str, float]:
        """The models that reproduce recorded outputs of the official code, and how closely."""
        file = self.root / "tests" / "parity" / f"{family.name}.yaml"
        records = _recipes.read_yaml(file)["records"] if file.exists() else {}
        found: dict[str, float] = {}
        for record in records.values():
            found[record["model"]] = max(found.get(record["model"], 0.0), record.get("tolerance", TOLERANCE))
        return found

    def citation(self, family: Family, field: str) -> str:
        """A field of the BibTeX entry in the family's card."""
        card = self.root / "model_cards" / f"{family.name}.md"
        found = re.search(rf"\b{field} = \{{(.*)\}}", card.read_text(encoding="utf-8") if card.exists() else "")
        return found[1] if found else UNWRITTEN


def markdown(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; empty cells for None."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |\n" for line in lines)


def paragraph(text: str, indent: str = "") -> str:
    """Lines of at most 120 characters."""
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) + "\n"


def top1(family: Family, published: dict[str, Any]) -> str | None:
    """A published accuracy or F1, with the data set where that is not ImageNet."""
    score = published.get("top1") or (f"F1 {published['f1']}" if "f1" in published else None)
    return f"{score} ({family.data.title})" if score and family.data != IMAGENET else score


def models(sources: Sources, family: Family) -> str:
    """Size, published accuracy and parity of every model."""
    head = ["model", "parameters", "input", "GFLOPs, counted", "GFLOPs, published", "top-1, published", "parity"]
    rows, entries, recorded = [], sources.numbers(family)["models"], sources.recorded(family)
    for variant in family.variants:
        if model := entries.get(variant.name):
            names = ", ".join(f"`{name}`" for name in (variant.name, *variant.aliases))
            published = model.get("published", {})
            parity = "recorded outputs reproduced" if variant.name in recorded else "same code, no record"
            pixels = family.default_cfgs[variant.name].default.input_size[-1]
            counted = f"{model['parameters'] / 1e6:.2f} M", pixels, f"{model['gflops']:.2f}"
            rows.append([names, *counted, published.get("flops"), top1(family, published), parity])
    return markdown(head, rows)


def measured(sources: Sources, *of: Family) -> str:
    """What was measured with this repository."""
    known = {name for family in of or sources.families for name in family.models}
    rows = [
        [f"`{row['model']}`", row["what"], row["result"], row["device"], row["commit"], f"`{row['command']}`"]
        for row in sources.results["measured"]
        if row["model"] in known
    ]
    if not rows:
        return "Nothing is recorded yet.\n"
    return markdown(["model", "what", "result", "device", "commit", "command"], rows)


def notice(sources: Sources) -> str:
    """Whose mathematics and weights the families are, for NOTICE."""
    return "\n".join(_notice(sources, family) for family in sources.families)


def _notice(sources: Sources, family: Family) -> str:
    owners = sorted({"/".join(variant.weights.split("/")[:4]) for variant in family.variants if variant.weights})
    license = LICENSES.get(family.license, family.license)
    authors = [" ".join(reversed(each.split(", "))) for each in sources.citation(family, "author").split(" and ")]
    rows = [
        f"{sources.citation(family, 'title')}. {', '.join(authors)}. arXiv {family.paper}.",
        f"The {family.title} architecture. Official implementation: {family.repository} at commit {family.commit[:7]}, "
        f"{family.code_license or license}.",
        f"Weights: {', '.join(owners) or 'none published'}, {license}.",
    ]
    first, *others = [textwrap.wrap(row, 114, break_on_hyphens=False, break_long_words=False) for row in rows]
    lines = [first[0], *(f"  {line}" for line in [*first[1:], *(line for other in others for line in other)])]
    return "".join(f"  {line}\n" for line in lines)


def card(sources: Sources, family: Family) -> str:
    """All of a card between its first paragraph and its limits."""
    numbers = sources.numbers(family)
    counts = (
        "Parameters and FLOPs are counted here; accuracy and published FLOPs are what the authors state (source: "
        f"{numbers['source']})."
    )
    if recorded := sources.recorded(family):
        closely = f"{max(recorded.values()):.0e}".replace("e-0", "e-")
        counts += (
            ' "Recorded outputs reproduced" means that our model, filled with the same synthetic weights, gives the '
            f"official implementation's logits to {closely} at every recorded image size, or to "
            "so much of their mean magnitude where that is above one."
        )
    sections = {
        "": facts(sources, family),
        "Models": f"{models(sources, family)}\n{paragraph(counts)}",
        "Use": use(family),
        "From the paper to the code": parts(family),
        "How it scans": scans(family),
        "Weights": weights(sources, family),
        "Detection and segmentation": downstream(sources, family),
        "Measured with this library": measured(sources, family),
    }
    return "\n".join(f"## {name}\n\n{text}" if name else text for name, text in sections.items())


def facts(sources: Sources, family: Family) -> str:
    license = LICENSES.get(family.license, family.license)
    unknown = ": it is unknown what use is allowed, ask the authors" if family.license == "unknown" else ""
    pixels = sorted({cfg.default.input_size[-1] for cfg in family.default_cfgs.values()})
    before = "".join(
        f"; `{variant.name}` first {variant.before.title}" for variant in family.variants if variant.before
    )
    rows = {
        "Paper": f"{sources.citation(family, 'title')}, <https://arxiv.org/abs/{family.paper}>",
        "Official implementation": f"<{family.repository}>, followed at commit `{family.commit[:7]}`. "
        "The code here was written anew.",
        "Licence of the official code and weights": f"{family.code_license and f'{family.code_license}; weights '}"
        f"{license}{unknown}",
        "Training data": f"{family.data.title}, {', '.join(map(str, pixels))} px{before}"
        if any(variant.weights for variant in family.variants)
        else "no classifier is published",
        "Feature maps": strides(family),
    }
    return "".join(paragraph(f"- **{name}:** {fact}", "  ") for name, fact in rows.items())


def strides(family: Family) -> str:
    """Pixels per position of each map, and of the variants that differ."""
    others = {variant.name: variant.strides for variant in family.variants if variant.strides}
    differing = "".join(f"; `{name}` {', '.join(map(str, each))}" for name, each in others.items())
    return f"strides of {', '.join(map(str, family.strides))} pixels{differing}"


def use(family: Family) -> str:
    variant = family.variants[0]
    name = (*variant.aliases, variant.name)[0]
    weights = "pretrained=True takes the authors' weights" if variant.downloadable else "for weights see below"
    info = _recipes.maps_of(name)
    maps = zip(info.channels(), info.reduction(), strict=True)
    shapes = "\n".join(f"(1, {channels}, {224 // stride}, {160 // stride})" for channels, stride in maps)
    return USE.format(name=name, weights=weights, shapes=shapes)


def parts(family: Family) -> str:
    """Which part of the paper is which class."""
    rows = []
    for paper, official, part in family.parts:
        code = part if inspect.isclass(part) else inspect.unwrap(getattr(part, "order", part))
        file = Path(inspect.getsourcefile(code)).relative_to(Path(vssm.__file__).parents[1]).as_posix()
        rows.append([paper, official, f"`{part.__name__}`", f"[{file}](../{file})"])
    return markdown(["in the paper", "in the official code", "here", "file"], rows)


def orders(family: Family) -> dict[str, Callable]:
    """The scan orders of a family by name: the defaults of its models, and those among its parts."""
    classes = dict.fromkeys(variant.model or family.model for variant in family.variants)
    found = [inspect.signature(model).parameters.get("scan_order") for model in classes]
    functions = [parameter.default for parameter in found if parameter is not None and parameter.default is not None]
    functions += [part for *_, part in family.parts if is_order(part)]
    return {name_of(order): order for order in functions}


def is_order(part: Callable) -> bool:
    return not inspect.isclass(part) and list(inspect.signature(part).parameters) == ["height", "width"]


def name_of(order: Callable) -> str:
    """The shortest name: "atrous" for "atrous(2)"."""
    registered = [name for name in order_names() if order_named(name) == order]
    return registered[0] if registered else order.__name__


def picture(name: str) -> str:
    """Of an order, from the root of the repository."""
    return f"docs/orders/{file_stem(name)}.png"


def pictures(sources: Sources) -> dict[Path, Callable[..., Any]]:
    """The pictures of all families' orders, and how to draw each."""
    found = {}
    for family in sources.families:
        for name, order in orders(family).items():
            table = passes(order(*GRID))
            found[sources.root / picture(name)] = partial(draw_order, table, *GRID, title=name)
    return found


def passes(order: ScanOrder) -> ScanOrder:
    """The same order, where a direction that walks the whole grid several times is a direction for each time."""
    whole = order.steps > order.tokens and order.steps % order.tokens == 0
    return ScanOrder(order.table.view(-1, order.tokens), order.tokens) if whole else order


def scans(family: Family) -> str:
    found = orders(family)
    if not found:
        return "It has no scan order.\n"
    lines = "".join(f"![the directions of {name}](../{picture(name)})\n" for name in found)
    names = ", ".join(f"`{name}`" for name in found)
    text = paragraph(
        f"Along {names}: a panel for each direction, or for each pass of a direction that walks the map several times, "
        "from the first step (blue, dot) to the last (red, square). Other orders are chosen with `scan_order`, see "
        "[the guide](../docs/scan_orders.md)."
    )
    return f"{text}\n{lines}"


def weights(sources: Sources, family: Family) -> str:
    """Where the published weights are, and how to load those that no program can fetch."""
    cfg = family.default_cfgs[family.variants[0].name].default
    published = any(variant.weights for variant in family.variants)
    text = (
        "The authors' files, fetched on request (`pretrained=True`) and never redistributed."
        if published
        else "None of classifiers are published."
    )
    other = next((variant for variant in family.variants if variant.weights and not variant.downloadable), None)
    if other:
        text += (
            " Folders on Google Drive only a browser can open: get the file there and give its path, "
            f'`timm.create_model("{other.name}", pretrained=True, pretrained_cfg_overlay=dict(file="..."))`.'
        )
    usual, *_ = inputs = [size_of_input(family.default_cfgs[variant.name].default) for variant in family.variants]
    mean = "ImageNet" if cfg.mean == IMAGENET_DEFAULT_MEAN else "its own"
    text += f" Input: {usual} and centre crop, {mean} mean and deviation."
    text += "".join(f" `{v.name}`: {px}." for v, px in zip(family.variants, inputs, strict=True) if px != usual)
    entries, rows = sources.numbers(family)["models"], []
    for variant in family.variants:
        published = entries.get(variant.name, {}).get("published", {})
        where = f"<{variant.weights}>" if variant.weights else "none published"
        rows.append([f"`{variant.name}`", published.get("top1"), published.get("top5"), where])
    return f"{paragraph(text)}\n" + markdown(["model", "top-1", "top-5", "weights"], rows)


def size_of_input(cfg: Any) -> str:
    how = "squash" if cfg.crop_mode == "squash" else "resize"
    return f"{cfg.input_size[-1]} px, {cfg.interpolation} {how} to {cfg.input_size[-1] / cfg.crop_pct:.0f}"


def downstream(sources: Sources, family: Family) -> str:
    """Detection and segmentation: recipes, sizes, and what is published of them."""
    head = ["backbone", "recipe", "parameters", "GFLOPs, counted", "GFLOPs, published", "score, published", "weights"]
    rows = []
    for recipe in sources.recipes:
        if recipe.family is family and recipe.published and not recipe.classifies:
            numbers, published = recipe.numbers, recipe.numbers.get("published", {})
            rows.append(
                [
                    f"`{recipe.model}`",
                    f"[{recipe.kind['task']}](../{recipe.path})",
                    f"{numbers['parameters'] / 1e6:.1f} M" if "parameters" in numbers else None,
                    numbers.get("gflops"),
                    published.get("flops"),
                    f"{published['score']} ({numbers['where']})" if published else "none",
                    f"<{numbers['weights']}>" if "weights" in numbers else None,
                ]
            )
    guide = "How to train, evaluate and predict: [the guide](../docs/detection_and_segmentation.md)."
    if not rows:
        return paragraph(f"No recipe is here yet; heads of mmdetection and mmsegmentation take every model. {guide}")
    text = (
        "Scores, FLOPs and weights are the authors'; none of it is reproduced here yet. Operations are counted on "
        f"images of 800 x 1280 (COCO; 1024 x 1024 where a recipe says 1024 px) and 512 x 2048 (ADE20K). {guide}"
    )
    return f"{paragraph(text)}\n{markdown(head, rows)}"


def whole_card(sources: Sources, family: Family) -> str:
    """A card with today's front matter, or a new one, whose tables are still to be filled in."""
    front_matter = FRONT_MATTER.format(license=family.license, data=family.data.hub)
    file = sources.root / "model_cards" / f"{family.name}.md"
    if not file.exists():
        return NEW_CARD.format(front_matter=front_matter, title=family.title, name=family.name, unwritten=UNWRITTEN)
    return front_matter + file.read_text(encoding="utf-8").split("---\n", 2)[-1]
