"""A fixture for tests that run kernels in Triton's interpreter: without its slowest habit."""

import importlib.util
from collections.abc import Iterator

import pytest


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
