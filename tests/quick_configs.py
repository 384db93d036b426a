"""A fixture for tests that read or train many configs: mmengine without its slowest habits."""

import functools
from collections.abc import Iterator

import pytest
from mmengine.config import config, utils


@pytest.fixture(scope="session", autouse=True)
def quick_configs() -> Iterator[None]:
    """Reads the index of a package once, not for each base from it, and leaves the text of configs in logs and
    checkpoints as it is: yapf, which lays it out, takes two thirds of a small training. Processes of their own do it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "load", functools.cache(utils.load))
        patch.setattr(config, "is_installed", functools.cache(config.is_installed))
        patch.setattr(config, "FormatCode", lambda text, **options: (text, True))
        yield
