"""Fixtures of the tests of kernels: a quicker interpreter, memory that shows what was not written, a compiler's
surroundings."""

import _ctypes
import ctypes
import importlib.util
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from vssm_kernels import compiler, kernel_cache


@pytest.fixture(autouse=True, scope="session")
def quick_interpreter() -> Iterator[None]:
    """Triton's interpreter replaces the functions of triton.language by its own at each call of a function in a kernel.

    That takes half of its time. Once for each module is enough, since a launch does it too.
    """
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from triton.runtime import interpreter

    replaced = set()

    def call(function, *args, **named):
        if function.fn.__module__ not in replaced:
            interpreter._patch_lang(function.fn)
            replaced.add(function.fn.__module__)
        return function.rewrite()(*args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield


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
