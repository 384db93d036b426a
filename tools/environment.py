#!/usr/bin/env python3
"""Make the environment that the Makefile's targets run in, or do nothing where it is up to date.

    python3 tools/environment.py .venv      # make or update it
    python3 tools/environment.py --key      # a name for what the environment depends on

Two notes are left in the environment. `vssm-inputs` says from which inputs it was made; it is written last, so an
interrupted run is repeated. `vssm-checkout` says which checkout the editable install of the project points to: one
environment may serve several clones, one after another.

Needs the standard library only, and is written so that an old Python can still read it and say that it is too old.
"""

import argparse
import configparser
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST = (3, 10)
EXTRAS = "train,mm,export,dev"


def read(*parts: str) -> str:
    path = os.path.join(*parts)
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return file.read()


def write(text: str, *parts: str) -> None:
    path = os.path.join(*parts)
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(path + ".new", path)


def inputs_key() -> str:
    """A hash of all that decides what is installed; other edits of setup.cfg do not change it."""
    config = configparser.ConfigParser()
    config.read_string(read(ROOT, "setup.cfg"))
    inputs = {
        "requires": config["options"]["install_requires"],
        "extras": dict(config["options.extras_require"]),
        "pyproject": read(ROOT, "pyproject.toml").split("[tool")[0],
        "constraints": read(ROOT, "constraints.txt"),
        "python": [sys.version_info[:2], sys.executable, platform.machine(), EXTRAS],
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def checkout_key() -> str:
    """Which files the editable install serves, and the metadata it was made with."""
    metadata = hashlib.sha256((read(ROOT, "setup.cfg") + read(ROOT, "pyproject.toml")).encode()).hexdigest()[:16]
    return f"{ROOT} {metadata}"


def stop(sentence: str) -> None:
    sys.exit("environment: " + sentence)


def check_python() -> None:
    if sys.version_info < OLDEST:
        found, oldest = ".".join(map(str, sys.version_info[:2])), ".".join(map(str, OLDEST))
        stop(f"this is Python {found}; vssm needs {oldest} or newer. Name another one: make test PYTHON=python3.12")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        stop("this Python cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv")


def pip(directory: str, *arguments: str) -> None:
    command = [os.path.join(directory, "bin", "python"), "-m", "pip", "install", "--quiet", "--quiet"]  # errors only
    command += ["--disable-pip-version-check", "--constraint", os.path.join(ROOT, "constraints.txt")]
    if subprocess.call(command + list(arguments), cwd=ROOT, stdin=subprocess.DEVNULL) != 0:
        stop("the installation failed, see the lines above. Running the same command again starts it anew.")


def make(directory: str, key: str) -> None:
    if os.path.exists(directory) and os.listdir(directory) and not os.path.exists(note(directory)):
        stop(f"{directory} exists and was not made by make. Name another place: make test VENV=.venv-vssm")
    print(f"making the environment in {directory}: 2 to 3 minutes, 6 GB", flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    write("unfinished\n", note(directory))
    if subprocess.call([sys.executable, "-m", "venv", directory]) != 0:
        stop("python3 -m venv failed. On Debian or Ubuntu: apt-get install python3-venv")
    pip(directory, "setuptools")
    pip(directory, "--no-build-isolation", "--editable", f".[{EXTRAS}]")
    write(checkout_key() + "\n", directory, "vssm-checkout")
    write(key + "\n", note(directory))
    print("the environment is ready", flush=True)


def note(directory: str) -> str:
    return os.path.join(directory, "vssm-inputs")


@contextlib.contextmanager
def alone(directory: str) -> "Iterator[None]":
    """Wait for other processes at the same work: two commands started together make the environment once."""
    parent = os.path.dirname(directory)
    os.makedirs(parent, exist_ok=True)
    lock = os.open(parent, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(lock)


def update(directory: str) -> None:
    """Make the environment if its inputs changed; point it to this checkout if it points to another one."""
    key = inputs_key()
    # An upgrade of the system's Python may have taken the interpreter away from under the environment.
    runs = os.access(os.path.join(directory, "bin", "python"), os.X_OK)
    if not runs or read(note(directory)).strip() != key:
        make(directory, key)
    elif read(directory, "vssm-checkout").strip() != checkout_key():
        pip(directory, "--no-deps", "--no-build-isolation", "--editable", ".")
        write(checkout_key() + "\n", directory, "vssm-checkout")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", default=".venv", help="where the environment is or will be")
    parser.add_argument("--key", action="store_true", help="print a hash of its inputs, and do nothing")
    arguments = parser.parse_args()
    check_python()
    if arguments.key:
        print(inputs_key())
    else:
        directory = os.path.abspath(arguments.directory)
        with alone(directory):
            update(directory)


if __name__ == "__main__":
    main()
