"""The families as tests see them: enumerated from their declarations."""

from vssm.models import FAMILIES

# (model, the arguments that make it quick) of everything that the declarations name.
KINDS = [(name, dict(arguments)) for family in FAMILIES.values() for name, arguments in family.small.items()]


def _first_of_each_class() -> list[tuple[str, dict]]:
    found = {}
    for family in FAMILIES.values():
        for name, arguments in family.small.items():
            found.setdefault(family.models[name].model or family.model, (name, dict(arguments)))
    return list(found.values())


CLASSES = _first_of_each_class()
