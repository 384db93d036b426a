"""Checkpoints: read a file, rename its weights, fit them into a model; and write them for the authors' code."""

from vssm.models._checkpoint.fit import Loadable, check_fits, fit, load_checkpoint, our_layout
from vssm.models._checkpoint.read import (
    WEIGHTS_UNDER,
    CheckpointError,
    read_checkpoint,
    read_file,
    unwrap,
    weights_in,
)
from vssm.models._checkpoint.renaming import Renaming, under
from vssm.models._checkpoint.write import official_state_dict, save_official

__all__ = [
    "WEIGHTS_UNDER",
    "CheckpointError",
    "Loadable",
    "Renaming",
    "check_fits",
    "fit",
    "load_checkpoint",
    "official_state_dict",
    "our_layout",
    "read_checkpoint",
    "read_file",
    "save_official",
    "under",
    "unwrap",
    "weights_in",
]
