"""One file per family; importing this package registers every model with timm.

`FAMILIES` has the declaration of every family by name, and the model classes (`Vim`, `VMamba`, ...) stand here too.
"""

import importlib
import pkgutil

from vssm.models._arguments import check_arguments
from vssm.models._checkpoint import (
    CheckpointError,
    Renaming,
    check_fits,
    load_checkpoint,
    official_state_dict,
    our_layout,
    read_checkpoint,
    read_file,
    save_official,
    under,
    weights_in,
)
from vssm.models._contract import Backbone, quarters, take_indices
from vssm.models._family import IMAGENET, Family, TrainingData, Variant, register
from vssm.models._mixers import MIXERS, resolve_mixer
from vssm.models._plain import Plain, PlainWithPosition
from vssm.models._pyramid import Pyramid

FAMILIES: dict[str, Family] = {
    module.name: importlib.import_module(f"{__name__}.{module.name}").FAMILY
    for module in pkgutil.iter_modules(__path__)
    if not module.name.startswith("_")
}
for _family in FAMILIES.values():
    register(_family)
    globals()[_family.model.__name__] = _family.model

__all__ = [
    "FAMILIES",
    "IMAGENET",
    "MIXERS",
    "Backbone",
    "CheckpointError",
    "Family",
    "Plain",
    "PlainWithPosition",
    "Pyramid",
    "Renaming",
    "TrainingData",
    "Variant",
    "check_arguments",
    "check_fits",
    "load_checkpoint",
    "official_state_dict",
    "our_layout",
    "quarters",
    "read_checkpoint",
    "read_file",
    "register",
    "resolve_mixer",
    "save_official",
    "take_indices",
    "under",
    "weights_in",
]
__all__ += [family.model.__name__ for family in FAMILIES.values()]
