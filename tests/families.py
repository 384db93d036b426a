"""The one place where tests list families, from their declarations: what to build, and what a family still lacks."""

from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import yaml

from vssm.models import FAMILIES, Backbone, Family

ROOT = Path(__file__).parents[1]
# What `make cards` writes into a new card where its author has to write.
UNWRITTEN = "TO BE WRITTEN"


def model_class(name: str) -> type[Backbone]:
    """The class that timm builds a model of ours from."""
    family = next(family for family in FAMILIES.values() if name in family.models)
    return family.models[name].model or family.model


# (model, arguments that make it quick to build and to run) of every kind of model.
KINDS: list[tuple[str, dict[str, Any]]] = [
    (name, dict(arguments)) for family in FAMILIES.values() for name, arguments in family.small.items()
]
# The first kind of each model class.
CLASSES: list[tuple[str, dict[str, Any]]] = []
for _kind in KINDS:
    if model_class(_kind[0]) not in [model_class(name) for name, _ in CLASSES]:
        CLASSES.append(_kind)
# Those of them that scan along an order of one's choice, and those that have none.
ORDERED = [kind for kind in CLASSES if "scan_order" in signature(model_class(kind[0])).parameters]
UNORDERED = [kind for kind in CLASSES if kind not in ORDERED]


def shallow(kind: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """A kind cut to two stages or two blocks, for tests that trace a model: every block takes them seconds.

    One with arguments for some of its stages alone stays whole.
    """
    name, arguments = kind
    stages = {key: value for key, value in arguments.items() if isinstance(value, tuple) and isinstance(value[0], int)}
    alike = len({len(value) for value in stages.values()}) == 1
    cut = {key: value[:2] for key, value in stages.items() if alike}
    return name, {**arguments, **cut, **({"depth": 2} if "depth" in arguments else {})}


def missing(family: Family, root: Path = ROOT) -> list[str]:
    """What a family lacks outside its own file, a sentence each; empty where it is complete.

    Args:
        family: its declaration.
        root: of the repository.
    """
    return list(_missing(family, root))


def _missing(family: Family, root: Path) -> Iterator[str]:
    if not family.parts:
        yield "its declaration has no `parts`: which part of the paper is which class"
    if not family.small:
        yield "its declaration has no `small`: the arguments with which tests build its models, on a GPU too"
    for name in sorted(set(family.small) - set(family.models)):
        yield f"`small` names {name}, which is none of its variants or aliases"
    made = {model_class(name) for name in set(family.small) & set(family.models)}
    classes = {variant.model or family.model for variant in family.variants} if family.small else set()
    for model in sorted(classes - made, key=str):
        yield f"`small` names no variant whose model is {model.__name__}"

    card = root / "model_cards" / f"{family.name}.md"
    if not card.exists():
        yield f"no card model_cards/{card.name}: `make cards` begins one"
    elif UNWRITTEN in card.read_text(encoding="utf-8"):
        yield f"model_cards/{card.name} says {UNWRITTEN!r} where a paragraph, the limits or the citation belong"

    results = yaml.safe_load((root / "model_cards" / "results.yaml").read_text(encoding="utf-8"))["families"]
    models = results.get(family.name, {}).get("models", {})
    for variant in family.variants:
        if variant.name not in models:
            yield f"no numbers of {variant.name} in model_cards/results.yaml"
        recipe = f"configs/classification/{family.name}/{variant.name}_{family.data.tag}.py"
        if not (root / recipe).exists():
            yield f"no recipe {recipe}: `make cards` writes it from a row in configs/recipes.yaml"
    if not (root / "tests" / "parity" / f"{family.name}.yaml").exists():
        yield f"no parity record: tests/parity/{family.name}.yaml names those of its models"
    if family.repository not in (root / "NOTICE").read_text(encoding="utf-8"):
        yield "no row in NOTICE: `make cards` writes it"
