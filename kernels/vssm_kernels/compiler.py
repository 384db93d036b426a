"""Build a C source with the machine's own compiler on first use, remember the result, and run it on all cores.

The wheel holds no compiled code: where no compiler is found the caller is told why and takes another way.
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
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# -ffp-contract=fast lets a * b + c become one instruction; no other licence is given with floating point.
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC")
_THREADS = "-fopenmp"  # a compiler without it, as Apple's, builds the same source for one thread
_HEADER = Path(__file__).with_name("vector.h")

_GROUP_MIN = 16  # channels: the widest vector of any processor


class Strides(ctypes.Structure):
    """strides of vector.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "token", "direction")]


class CompilerError(RuntimeError):
    """There is no working C compiler; the message says why."""


def find_compiler() -> str | None:
    """Path of the C compiler: $CC, else cc, gcc or clang; None where there is none."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


@lru_cache
def load_library(source: Path) -> ctypes.CDLL:
    """The shared library made from a C source; compiled once per source, compiler and kind of processor.

    Kept under $VSSM_CACHE, else $XDG_CACHE_HOME/vssm or ~/.cache/vssm. Raises CompilerError.
    """
    if sys.platform == "win32":
        raise CompilerError("the C kernels are built for Linux and macOS only")
    compiler = find_compiler()
    if compiler is None:
        raise CompilerError("no C compiler found (looked for $CC, cc, gcc, clang); install gcc to have the fast path")
    texts = [path.read_text() for path in (source, _HEADER)]
    identity = [compiler, *_FLAGS, _THREADS, *texts, platform.machine(), _processor()]
    digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:16]
    name = f"{source.stem}-{digest}.so"
    try:
        target = _cache_folder() / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            _compile(compiler, source, target)
    except OSError as error:
        logger.warning("cannot keep compiled kernels in %s (%s); compiling for this process only", target.parent, error)
        target = Path(tempfile.mkdtemp(prefix="vssm-")) / name
        _compile(compiler, source, target)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise CompilerError(f"the compiled kernel {target} does not load: {error}") from None


def float_rows(tensor: Tensor) -> Tensor:
    """The tensor in float32, its last dimension contiguous; other strides are read as they are."""
    tensor = tensor.float()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def channel_bands(channels: int, tasks: int, wanted: int = 1) -> int:
    """How many bands of channels each of a kernel's tasks is split into: as wanted, more where threads would idle."""
    most = -(-channels // _GROUP_MIN)
    return max(1, min(most, max(wanted, 2 * torch.get_num_threads() // tasks)))


def run_tasks(library: ctypes.CDLL, name: str, arguments: ctypes.Structure, tasks: int) -> None:
    """Call the kernel `name(arguments, first, last)` over all tasks, on as many threads as torch uses.

    Raises MemoryError where it found no room for its work space.
    """
    threads = max(1, min(torch.get_num_threads(), tasks))
    function = ctypes.cast(getattr(library, name), ctypes.c_void_p)
    if library.vssm_run(function, ctypes.byref(arguments), ctypes.c_int64(tasks), ctypes.c_int(threads)):
        raise MemoryError("a kernel could not allocate its work space on the CPU")


@lru_cache
def why_no_library(source: Path) -> str | None:
    """Why `load_library` fails on this machine, None where it works."""
    try:
        load_library(source)
    except CompilerError as error:
        return str(error)
    return None


def _cache_folder() -> Path:
    if "VSSM_CACHE" in os.environ:
        return Path(os.environ["VSSM_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vssm"


def _compile(compiler: str, source: Path, target: Path) -> None:
    """Compile beside the target and rename, so that processes starting together never load half a file."""
    logger.info("compiling %s with %s (once, about a second)", source.name, compiler)
    handle, scratch = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        command = [compiler, *_FLAGS, f"-I{_HEADER.parent}", str(source), "-o", scratch]
        for options in ([_THREADS], []):
            done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                break
        else:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            reason = next((line for line in lines if "error" in line), lines[0])
            raise CompilerError(f"{compiler} could not build {source.name}: {reason}")
        os.replace(scratch, target)
    finally:
        Path(scratch).unlink(missing_ok=True)


def _processor() -> str:
    """What -march=native depends on: a cache on a shared disk may serve machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
