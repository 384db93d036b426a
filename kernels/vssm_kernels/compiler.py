"""Compile a C source with the machine's own compiler on first use, store the result, and run it on all cores.

The wheel holds no compiled code. Where no compiler works, callers are told why and use plain torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from vssm_kernels.kernel_cache import open_cache, scratch_folder, store, stored_libraries, warn_once

logger = logging.getLogger(__name__)

# -ffp-contract=fast makes a * b + c one instruction; nothing else about floating point is relaxed.
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC")
_THREADS = "-fopenmp"  # a compiler without OpenMP, such as Apple's, builds the same source for one thread
_SANITIZE = ("-fsanitize=address,undefined", "-g", "-fno-omit-frame-pointer")
_HEADER = Path(__file__).with_name("vector.h")
_COMPILE_SECONDS = 600  # a compile takes about one; it is ended where the compiler hangs

_BAND_MIN = 16  # channels: the widest vector of any processor


class Strides(ctypes.Structure):
    """strides of vector.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "token", "direction")]


class CompilerError(RuntimeError):
    """The C kernels cannot be compiled or loaded on this machine; the message says why."""


def find_compiler() -> str | None:
    """Path of the C compiler: $CC, else cc, gcc or clang; None where there is none."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found:
            return os.path.abspath(found)  # it is started in another folder
    return None


@lru_cache
def load_library(source: Path) -> ctypes.CDLL:
    """The shared library made from a C source; compiled once per source, compiler, options and kind of processor.

    Stored in the folder of `kernel_cache.cache_path`; where that cannot be used, compiled for this process alone.
    Raises CompilerError.

    With VSSM_SANITIZE=1 it reports errors of memory and undefined behaviour. Their runtime has to be loaded first:

        export VSSM_SANITIZE=1 ASAN_OPTIONS=detect_leaks=0
        LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)" python ...
    """
    if sys.platform == "win32":
        raise CompilerError("the C kernels are built for Linux and macOS only")
    compiler = find_compiler()
    if compiler is None:
        raise CompilerError("no C compiler found (looked for $CC, cc, gcc, clang); install gcc to have the fast path")
    options = [*_FLAGS, *(_SANITIZE if os.environ.get("VSSM_SANITIZE") == "1" else ())]
    try:
        return _load_or_compile(compiler, [*options, _THREADS], source)
    except CompilerError:
        if _builds_with(compiler, _THREADS) or not _builds_with(compiler):
            raise  # not because of threads
    library = _load_or_compile(compiler, options, source)
    warn_once(f"{compiler} refuses {_THREADS}: the C kernels use one core; a compiler with OpenMP lets them use all")
    return library


def float_rows(tensor: Tensor) -> Tensor:
    """The tensor in float32, its last dimension contiguous; other strides are read as they are."""
    tensor = tensor.float()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def channel_bands(channels: int, tasks: int, wanted: int = 1) -> int:
    """How many bands of channels each of a kernel's tasks is split into: as wanted, more where threads would idle."""
    most = -(-channels // _BAND_MIN)
    return max(1, min(most, max(wanted, 2 * torch.get_num_threads() // tasks)))


def run_tasks(library: ctypes.CDLL, name: str, arguments: ctypes.Structure, tasks: int) -> None:
    """Call the kernel `name(arguments, first, last)` over all tasks, on as many threads as torch uses.

    Raises MemoryError where the kernel cannot allocate its work space.
    """
    threads = max(1, min(torch.get_num_threads(), tasks))
    kernel = getattr(library, name)  # passed on as the address of the function
    if library.vssm_run(kernel, ctypes.byref(arguments), ctypes.c_int64(tasks), ctypes.c_int(threads)):
        raise MemoryError("a kernel could not allocate its work space on the CPU")


@lru_cache
def why_no_library(source: Path) -> str | None:
    """Why `load_library` fails on this machine, with a warning; None where it works."""
    try:
        load_library(source)
    except CompilerError as error:
        warn_once(f"the C kernels cannot run, and plain torch takes many times longer on a CPU: {error}")
        return str(error)
    return None


def _load_or_compile(compiler: str, options: list[str], source: Path) -> ctypes.CDLL:
    """The stored library of this source and these options, else a new one, which is stored if it can be."""
    texts = [path.read_text(encoding="utf-8") for path in (source, _HEADER)]
    identity = "\0".join([compiler, *options, *texts, platform.machine(), _processor()])
    name = f"{source.stem}-{hashlib.sha256(identity.encode(errors='surrogateescape')).hexdigest()[:16]}"
    with ExitStack() as stack:
        cache = None
        with _warn_if_not_stored():
            cache = stack.enter_context(open_cache())
            for path in stored_libraries(cache, name):
                with suppress(OSError):  # made on a machine with another C library, or its disk forbids programs
                    return _load(path, options)
        try:
            library = _compile(compiler, options, source, stack.enter_context(scratch_folder()) / f"{name}.so")
            if cache is not None:
                with _warn_if_not_stored():
                    return _load(store(library, cache, name), options)
            return _load(library, options)
        except OSError as error:
            raise CompilerError(f"the compiled kernel {name} does not load: {error}") from None


def _load(path: Path, options: list[str]) -> ctypes.CDLL:
    # Sanitizers look up the lines of a report by the path, which must outlive the folder's descriptor for that.
    return ctypes.CDLL(os.path.realpath(path) if set(_SANITIZE) <= set(options) else str(path))


@contextmanager
def _warn_if_not_stored() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        warn_once(
            f"cannot store compiled kernels, so every process compiles its own: {error}. "
            f"VSSM_CACHE=/absolute/path names another folder"
        )


def _compile(compiler: str, options: list[str], source: Path, target: Path) -> Path:
    """Compile into the target's folder, where the compiler's own temporary files go too. Returns the target."""
    logger.info("compiling %s with %s (once, about a second)", source.name, compiler)
    command = [compiler, *options, f"-I{_HEADER.parent}", str(source.absolute()), "-o", target.name]
    # Messages in English, as "error" is looked for. Temporary files in the working directory, which is the target's
    # folder itself and not a path that someone could lead elsewhere.
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": "."}
    try:
        done = subprocess.run(
            command,
            cwd=target.parent,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_COMPILE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilerError(f"{compiler} does not run: {error}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        reason = next((line for line in lines if "error" in line), lines[0])
        raise CompilerError(f"{compiler} could not build {source.name}: {reason}")
    return target


@lru_cache
def _builds_with(compiler: str, *options: str) -> bool:
    """Whether the compiler builds an empty program with the options. Asked again in every process, never stored."""
    try:
        with scratch_folder() as folder:
            _compile(compiler, ["-x", "c", "-shared", "-fPIC", *options], Path(os.devnull), folder / "empty.so")
    except (CompilerError, OSError):
        return False
    return True


def _processor() -> str:
    """What -march=native depends on: a cache on a shared disk may serve machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
