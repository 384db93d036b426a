"""The configs of the published recipes, as configs/recipes.yaml, results.yaml and the families' declarations say."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import yaml
from timm.models import FeatureInfo

from vssm.models import FAMILIES, Family

# Images of COCO with objects, which detectors are trained on.
COCO_IMAGES = 117_266
# Multiply-adds in a second that a training is taken to reach on an A100, and those of a forward and a backward pass in
# units of a forward pass: for the estimate of hours.
RATE, PASSES = 5e12, 3
WIDTH = 100
CHANGES = ("drop_path", "images", "notes", "config")  # that rows of recipes.yaml make


@dataclass(frozen=True)
class Recipe:
    """One config: a kind of recipe for a model.

    Args:
        path: of the config, from the root of the repository.
        name: of the kind.
        kind: what all recipes of it share, from configs/recipes.yaml.
        family, model: what is trained.
        changes: the sum of the family's rows for this kind and model.
        numbers: what results.yaml has of it: counted sizes, and published scores if there are any.
        measured: results of trainings with this config.
    """

    path: str
    name: str
    kind: dict[str, Any]
    family: Family
    model: str
    changes: dict[str, Any]
    numbers: dict[str, Any]
    measured: list[dict[str, Any]]

    @property
    def classifies(self) -> bool:
        """Whether the model is the whole, and not the backbone of a detector or segmentor."""
        return "channels" not in self.kind

    @property
    def published(self) -> bool:
        """Whether the authors trained so, and not this library alone on the embedded set."""
        return "score" not in self.kind

    def text(self) -> str:
        """The config."""
        notes = [self.command(), self.cost(), self.score(), *self.notes()]
        bases = [f"    '../../_base_/{base}',\n" for base in self.kind["bases"]]
        sections = [assignment(key, value) for key, value in self.config().items()]
        return (
            "".join(f"# {note}\n" for note in notes)
            + "# Written by `make cards` from configs/recipes.yaml.\n"
            + f"_base_ = [\n{''.join(bases)}]\n\n"
            + "\n".join(sections)
            + "\n"
        )

    def command(self) -> str:
        nodes, gpus = divmod(self.kind["gpus"], 8)
        if self.kind["gpus"] == 1:
            return f"Command: python tools/train.py {self.path}"
        several = f"--nnodes {nodes} " if nodes > 1 else ""
        return f"Command: torchrun {several}--nproc-per-node {gpus or 8} tools/train.py {self.path} --launcher pytorch"

    def cost(self) -> str:
        hours = self.kind.get("cost", "hours are not published and have not been measured here")
        if self.published and not self.classifies and "gflops" in self.numbers:
            hours = f"about {self.hours():.0f} hours on A100 cards (an estimate from its FLOPs)"
        images = self.changes.get("images", self.kind["images"])
        plural = "s" if self.kind["gpus"] > 1 else ""
        return f"Cost: {self.kind['gpus']} GPU{plural} x {images} images, {self.kind['length']}; {hours}."

    def hours(self) -> float:
        """Of the training, to about two digits."""
        count, unit = self.kind["length"].split()[:2]
        images = int(count) * (COCO_IMAGES if unit == "epochs" else self.kind["gpus"] * self.kind["images"])
        operations = PASSES * self.numbers["gflops"] * 1e9 * self.kind.get("pixels", 1) * images
        hours = operations / (RATE * self.kind["gpus"]) / 3600
        return round(hours, -1 if hours >= 100 else 0)

    def score(self) -> str:
        if not self.published:
            results = [f"{row['result']} ({row['what']})" for row in self.measured]
            return f"Score: {'; '.join(results) or self.kind['score']}."
        published = self.numbers.get("published")
        if not published:
            return "Score: none is known here."
        accuracies = [f"{published[key]} % {key[:3]}-{key[3:]}" for key in ("top1", "top5") if key in published]
        score = published.get("score") or ", ".join(accuracies)
        several = " (--tta)" if "several scales" in score else ""
        return f"Score: {score}{several} (published, {self.numbers['where']})."

    def notes(self) -> list[str]:
        notes = list(self.changes.get("notes", ()))
        if "init_cfg" in self.start():
            notes.append(
                "The ImageNet weights lie in a folder that only a browser can open (see the model card): put them into "
                "the file named below."
                if self.family.models[self.model].weights
                else "No ImageNet weights are published: train the classifier first, and put its weights into the file "
                "named below."
            )
        return [line for note in notes for line in textwrap.wrap(note, 117)]

    def config(self) -> dict[str, Any]:
        """The keys in which the config differs from its bases."""
        backbone = {"name": self.model}
        if "drop_path" in self.changes:
            backbone["drop_path_rate"] = self.changes["drop_path"]
        config = merged({"model": {"backbone": backbone | self.start()}}, self.kind.get("config", {}))
        changed = self.changes.get("config", {}).get("model", {}).get("backbone", {})
        arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in changed.items()}
        for name in ("output_norm", "heads"):  # not of the model, but of what holds it
            arguments.pop(name, None)
        for key, maps in self.kind.get("channels", {}).items():
            channels = maps_of(self.model, **arguments).channels()
            value = [channels[index] for index in maps] if isinstance(maps, list) else channels[maps]
            part, name = key.split(".")
            config = merged(config, {"model": {part: {name: value}}})
        if "images" in self.changes:
            images = self.changes["images"]
            batch = {"base_batch_size": images * self.kind["gpus"]}
            config = merged(config, {"train_dataloader": {"batch_size": images}, "auto_scale_lr": batch})
        return merged(config, self.changes.get("config", {}))

    def start(self) -> dict[str, Any]:
        """The backbone's arguments for the weights that published detectors and segmentors start from."""
        if self.classifies or not self.published:
            return {}
        if self.family.models[self.model].downloadable:
            return {"pretrained": True}
        return {"init_cfg": {"type": "Pretrained", "checkpoint": f"checkpoints/{self.model}.pth"}}


def read_yaml(file: Path) -> Any:
    """Plain values. With libyaml where it is there, which is nine times as fast."""
    return yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@functools.cache
def maps_of(model: str, **arguments: Any) -> FeatureInfo:
    """Channels and strides of the maps of a model with these arguments."""
    return timm.create_model(model, features_only=True, device="meta", **arguments).feature_info


def recipes(file: Path, results: dict[str, Any]) -> Iterator[Recipe]:
    """Every recipe of configs/recipes.yaml, for every model that has it, kind by kind.

    Raises:
        ValueError: a row names a kind, a family, a model or a change that is not there.
    """
    table = read_yaml(file)
    kinds = table["kinds"]
    for name, rows in table["recipes"].items():
        check("configs/recipes.yaml", name in FAMILIES, f"family {name!r}")
        family = FAMILIES[name]
        models = list(family.models)
        changes = sums_of(rows, list(kinds), models, f"configs/recipes.yaml, {name}")
        for kind, model in sorted(changes, key=lambda key: (list(kinds).index(key[0]), models.index(key[1]))):
            path = "configs/" + kinds[kind]["file"].format(family=name, model=model)
            numbers = numbers_of(family, kind, model, results)
            measured = [row for row in results["measured"] if path in row["command"].split()]
            yield Recipe(path, kind, kinds[kind], family, model, changes[kind, model], numbers, measured)


def sums_of(rows: list[dict[str, Any]], kinds: list[str], models: list[str], where: str) -> dict[tuple[str, str], dict]:
    """The sum of a family's rows for each kind and model. Raises ValueError for an unknown name."""
    sums: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        for key in row:
            check(where, key in ("recipes", "models", *CHANGES), f"key {key!r}; known: {', '.join(CHANGES)}")
        for kind in row["recipes"]:
            check(where, kind in kinds, f"kind {kind!r}")
            for model in row["models"]:
                check(where, model in models, f"model {model!r}")
                add_row(sums.setdefault((kind, model), {}), row)
    return sums


def check(where: str, known: bool, what: str) -> None:
    if not known:
        raise ValueError(f"{where}: there is no {what}")


def add_row(changes: dict[str, Any], row: dict[str, Any]) -> None:
    """Notes add up, keys of the config are joined, everything else is replaced."""
    changes.update({key: row[key] for key in ("drop_path", "images") if key in row})
    if "notes" in row:
        changes["notes"] = [*changes.get("notes", ()), row["notes"]]
    changes["config"] = merged(changes.get("config", {}), row.get("config", {}))


def numbers_of(family: Family, kind: str, model: str, results: dict[str, Any]) -> dict[str, Any]:
    """Counted and published numbers of a model, or of the detector or segmentor of a kind of recipe."""
    entry = results["families"].get(family.name, {})
    downstream = entry.get("downstream", {}).get(kind, {}).get(model)
    paper = downstream and entry["downstream_source"] == "paper"
    where = f"arXiv {family.paper}" if paper else family.repository.removeprefix("https://")
    return {"where": where, **(downstream or entry.get("models", {}).get(family.models[model].name, {}))}


def merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`config` with changes, dict by dict; both stay as they are."""
    result = dict(config)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old if isinstance(old, dict) else {}, value) if isinstance(value, dict) else value
    return result


def assignment(key: str, value: Any, indent: str = "", separator: str = " = ") -> str:
    """`key = value` as mmengine's configs write it; a dict that does not fit its line is broken at its keys, and a list
    of dicts between them."""
    line = f"{indent}{key}{separator}{one_line(value)}"
    if len(line) < WIDTH:
        return line
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        return (
            f"{indent}{key}{separator}[\n"
            + "".join(f"{indent}    {one_line(each)},\n" for each in value)
            + f"{indent}]"
        )
    if not isinstance(value, dict):
        return line
    inner = [assignment(name, each, indent + "    ", "=") for name, each in value.items()]
    return f"{indent}{key}{separator}dict(\n" + ",\n".join(inner) + ")"


def one_line(value: Any) -> str:
    if isinstance(value, dict):
        return f"dict({', '.join(f'{key}={one_line(each)}' for key, each in value.items())})"
    if isinstance(value, list):
        return f"[{', '.join(map(one_line, value))}]"
    return repr(value)
