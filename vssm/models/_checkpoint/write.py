"""Weights trained here, for the authors' own code."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from vssm.files import written_whole
from vssm.models._checkpoint.fit import Loadable


def official_state_dict(model: Loadable) -> dict[str, Tensor]:
    """A model's weights by the names and in the shapes of its family's official code.

    >>> import timm, vssm
    >>> model = timm.create_model("vmamba_tiny", dims=(16, 32), depths=(1, 1))
    >>> vssm.models.official_state_dict(model)["layers.0.blocks.0.op.A_logs"].shape
    torch.Size([64, 1])
    """
    return model.renaming.write(model.state_dict())


def save_official(model: Loadable, path: str | Path, overwrite: bool = False) -> None:
    """Write a model's weights as its family's official code reads them: a dict with the weights under "model".

    Written under a temporary name and renamed, so that no incomplete file ever stands under `path`.

    Args:
        model: one of this package's models.
        path: of the .pth file.
        overwrite: replace a file that exists already.

    Raises:
        FileExistsError: there is such a file, and `overwrite` is not given.
        IsADirectoryError, FileNotFoundError: it is a folder, or in none.
    """
    path = Path(path)
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"{path} exists already: choose another name, or give overwrite=True")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")
    with written_whole(path) as temporary:
        torch.save({model.weights_under[0]: official_state_dict(model)}, temporary)
