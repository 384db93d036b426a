"""Reads mmdetection's and mmsegmentation's configs quickly."""

import functools

import mmengine.config.utils
import pytest


@pytest.fixture(scope="module", autouse=True)
def read_the_index_of_a_package_once():
    """For each base in another package mmengine reads a hundred files: a second for each config."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmengine.config.utils, "load", functools.cache(mmengine.config.utils.load))
        yield
