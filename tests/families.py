"""The one place where tests list families, from their declarations: what to build, and what a family still lacks."""

from collections.abc import Iterator
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vssm.models import FAMILIES, Backbone, Family, Plain, Pyramid

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


def shallow(kind: tuple[str, dict[str, Any]], parts: int = 2) -> tuple[str, dict[str, Any]]:
    """A kind cut to so many stages or blocks, for tests that trace a model: every block takes them seconds.

    One with arguments for some of its stages alone stays whole, and one of branches keeps two.
    """
    name, arguments = kind
    parts = parts if issubclass(model_class(name), Plain | Pyramid) else max(parts, 2)
    stages = {key: value for key, value in arguments.items() if isinstance(value, tuple) and isinstance(value[0], int)}
    alike = len({len(value) for value in stages.values()}) == 1
    cut = {key: value[:parts] for key, value in stages.items() if alike}
    return name, {**arguments, **cut, **({"depth": parts} if "depth" in arguments else {})}


class _Calls(TorchDispatchMode):
    """Which operators of ours are called, each with the arguments that its code branches at."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple] = set()

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if operator.namespace == "vssm":
            branches = [each.shape[-1:] == (1,) if isinstance(each, Tensor) else type(each) for each in args]
            self.seen.add((str(operator), *branches))
        return operator(*args, **(kwargs or {}))


@cache
def bringing_operators() -> list[tuple[str, dict[str, Any]]]:
    """The classes of models, made shallow, that call an operator of ours as none before them does.

    For tests of what works or fails with each operator, and takes seconds for every model.
    """
    found, seen = [], set()
    for kind in map(shallow, CLASSES):
        model = timm.create_model(kind[0], **kind[1]).eval()
        with torch.no_grad(), _Calls() as calls:
            model(torch.zeros(1, 3, 32, 32))
        found += [kind] if calls.seen - seen else []
        seen |= calls.seen
    return found


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
