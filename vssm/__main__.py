"""What a bug report needs: python -m vssm. Other people's scripts with our models: python -m vssm SCRIPT ..."""

import argparse
import os
import platform
import runpy
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import torch

from vssm import __version__
from vssm_kernels import backend_report
from vssm_kernels.compiler import find_compiler
from vssm_kernels.kernel_cache import cache_path, open_cache

# The packages that this library's results depend on, and the variables that change what it does.
_PACKAGES = ("torch", "torchvision", "timm", "triton", "numpy", "pillow", "mmengine", "albumentations")
_VARIABLES = ("TRITON_INTERPRET", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CC", "VSSM_CACHE", "VSSM_SANITIZE")


def report() -> str:
    """Versions, machine, devices and kernel backends, one "name  value" line each.

    >>> print(report())  # doctest: +ELLIPSIS
    vssm ...
    """
    lines = [*_versions(), *_machine(), *_devices(), *_settings(), *_kernels()]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _versions() -> Iterator[tuple[str, str]]:
    yield "vssm", f"{__version__} in {Path(__file__).parent}"
    for name in _PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "not installed"


def _machine() -> Iterator[tuple[str, str]]:
    yield "python", f"{platform.python_implementation()} {platform.python_version()}"
    yield "system", platform.platform()
    yield "processor", f"{_processor_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    yield "C compiler", _compiler()
    yield "kernel cache", _kernel_cache()


def _processor_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _compiler() -> str:
    path = find_compiler()
    if path is None:
        return "none found"
    try:
        version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError as error:
        return f"{path}, which does not run: {error}"
    return f"{path} ({version.splitlines()[0]})" if version else path


def _kernel_cache() -> str:
    try:
        with open_cache():
            return str(cache_path())
    except OSError as error:
        return f"not used: {error}"


def _devices() -> Iterator[tuple[str, str]]:
    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
    yield "torch built for", f"ROCm {torch.version.hip}" if torch.version.hip else built_for
    if not torch.cuda.is_available():
        yield "GPU", "none that torch can use"
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        capability = f"{device.major}.{device.minor}"
        yield f"GPU {index}", f"{device.name}, {device.total_memory / 2**30:.1f} GiB, capability {capability}"


def _settings() -> Iterator[tuple[str, str]]:
    for name in _VARIABLES:
        if name in os.environ:
            yield f"${name}", os.environ[name]


def _kernels() -> Iterator[tuple[str, str]]:
    for op, backend, state in backend_report():
        yield f"{op}, {backend}", state


def main(argv: Sequence[str] | None = None) -> None:
    """Print the report, or run a script as `python SCRIPT ARGUMENTS` does, with our models registered with timm."""
    parser = argparse.ArgumentParser(prog="python -m vssm", description=main.__doc__)
    parser.add_argument("script", nargs="?", help="a Python file, such as timm's validate.py (default: the report)")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the script")
    options = parser.parse_args(argv)
    if options.script is None:
        print(report())
        return
    if not Path(options.script).is_file():
        parser.error(f"there is no file {options.script}; expected a Python script, such as timm's validate.py")
    sys.argv[:] = [options.script, *options.arguments]
    sys.path[0] = str(Path(options.script).resolve().parent)
    runpy.run_path(options.script, run_name="__main__")


if __name__ == "__main__":
    main()
