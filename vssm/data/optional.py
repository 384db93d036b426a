"""Optional packages of the data pipelines, imported at use; a missing one is an error with its install line."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
from types import ModuleType

_logger = logging.getLogger(__name__)


def import_albumentations() -> ModuleType:
    """Import albumentations (MIT), without its check over the network for a newer version.

    Its successor albumentationsx installs under the same import name but is licensed AGPL-3.0: where that one is
    installed, a warning says so.

    Raises:
        ImportError: not installed.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        module = importlib.import_module("albumentations")
    except ImportError as error:
        raise ImportError(
            "an AlbumentationsTransform needs albumentations: pip install 'albumentations>=2.0.8,<2.1'"
        ) from error
    if is_installed("albumentationsx"):
        _logger.warning(
            "albumentationsx, licensed AGPL-3.0, is installed under albumentations' name; if that licence is not yours "
            "to take: pip uninstall albumentationsx && pip install 'albumentations>=2.0.8,<2.1' (MIT)"
        )
    return module


def is_installed(distribution: str) -> bool:
    """Whether a distribution of that name is installed.

    >>> is_installed("torch")
    True
    """
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
