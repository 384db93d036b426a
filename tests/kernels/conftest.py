"""Fixtures of the tests of kernels: memory that shows what was not written, a compiler's surroundings."""

import _ctypes
import ctypes
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from quick_interpreter import quick_interpreter  # noqa: F401

from vssm_kernels import compiler, kernel_cache


@pytest.fixture
def fresh_process(tmp_path, monkeypatch, caplog):
    """As in a new process: nothing loaded, nothing said; the cache and temporary files lie in the test's folder."""
    for cached in (compiler.load_library, compiler.why_no_library, compiler._builds_with, kernel_cache.warn_once):
        cached.cache_clear()
    caplog.set_level(logging.WARNING, logger="vssm_kernels")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("VSSM_CACHE", str(tmp_path / "cache"))
    yield
    compiler.load_library.cache_clear()
    compiler.why_no_library.cache_clear()


@pytest.fixture
def cache(tmp_path) -> Path:
    """Where compiled kernels are stored; missing at first."""
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path) -> Path:
    """A C function that returns 42, whose text no other test has: a process maps a library only once."""
    path = tmp_path / "answer.c"
    path.write_text(f"/* {tmp_path} */ int answer(void) {{ return 42; }}\n")
    return path


@pytest.fixture
def load_again() -> Callable[[Path], ctypes.CDLL]:
    """Load a library, and load it once more as a new process would, from the disk."""

    def load(source: Path) -> ctypes.CDLL:
        _ctypes.dlclose(compiler.load_library(source)._handle)
        compiler.load_library.cache_clear()
        return compiler.load_library(source)

    return load


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """torch.empty holds NaN instead of whatever was there: an element that is never written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
