"""Reads mmdetection's and mmsegmentation's configs quickly."""

import functools

import pytest
from mmengine.config import config, utils


@pytest.fixture(scope="module", autouse=True)
def read_the_index_of_a_package_once():
    """For each base in another package mmengine reads a hundred files and looks for the package: 1.2 s a config."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "load", functools.cache(utils.load))
        patch.setattr(config, "is_installed", functools.cache(config.is_installed))
        yield
