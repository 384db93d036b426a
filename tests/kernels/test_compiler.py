"""Compilers that fail, or that are asked for other things; what a compile leaves behind."""

import ctypes
import logging
import sys
from pathlib import Path

import pytest

from vssm_kernels import compiler
from vssm_kernels.compiler import CompilerError, load_library, why_no_library

if sys.platform == "win32":
    pytest.skip("no kernels are compiled on Windows", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("fresh_process")


def fake_compiler(monkeypatch, folder: Path, script: str) -> Path:
    """A shell script as $CC; `run` in it is the real compiler. Its arguments are logged, a line for each call."""
    path = folder / "fake-cc"
    log = folder / "calls"
    run = f'run() {{ exec {compiler.find_compiler()} "$@"; }}'
    path.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{run}\n{script}\n')
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))
    return log


def test_the_slow_path_is_announced_once(source, tmp_path, monkeypatch, caplog):
    other = tmp_path / "other.c"
    other.write_text("int other;")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    for _ in range(2):
        assert why_no_library(source) == why_no_library(other)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "plain torch takes many times longer on a CPU: no C compiler found" in record.message


@pytest.fixture
def threads(tmp_path) -> Path:
    """A source that says whether it was compiled with OpenMP."""
    if not compiler._builds_with(compiler.find_compiler(), "-fopenmp"):
        pytest.skip("this machine's compiler has no OpenMP")
    path = tmp_path / "threads.c"
    path.write_text(f"/* {tmp_path} */\n#ifdef _OPENMP\nint threads = 1;\n#else\nint threads = 0;\n#endif\n")
    return path


def has_threads(library: ctypes.CDLL) -> bool:
    return bool(ctypes.c_int.in_dll(library, "threads").value)


def test_a_compiler_that_failed_once_is_asked_for_openmp_again(threads, cache, tmp_path, monkeypatch):
    fake_compiler(monkeypatch, tmp_path, f'[ -e {tmp_path}/failed ] && run "$@"\ntouch {tmp_path}/failed; exit 1')
    with pytest.raises(CompilerError, match=r"could not build threads\.c: exit status 1"):
        load_library(threads)
    assert list(cache.iterdir()) == []
    assert has_threads(load_library(threads))


def test_openmp_is_dropped_where_the_compiler_refuses_it(threads, tmp_path, monkeypatch, load_again, caplog):
    refuse = "case \"$*\" in *-fopenmp*) [ -e able ] || { echo 'error: no OpenMP' >&2; exit 1; };; esac"
    fake_compiler(monkeypatch, tmp_path, f'{refuse.replace("able", str(tmp_path / "able"))}\nrun "$@"')
    assert not has_threads(load_library(threads))
    assert not has_threads(load_again(threads))
    (record,) = caplog.records
    assert "refuses -fopenmp: the C kernels use one core" in record.message

    (tmp_path / "able").touch()  # as after `brew install libomp`
    assert has_threads(load_again(threads))


def test_a_file_that_is_no_program_is_no_compiler(source, tmp_path, monkeypatch):
    broken = tmp_path / "broken-cc"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(CompilerError, match=r"broken-cc does not run: .*Exec format error"):
        load_library(source)


def test_a_compiler_in_a_relative_path_is_found_again(source, tmp_path, monkeypatch):
    fake_compiler(monkeypatch, tmp_path, 'run "$@"')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CC", "./fake-cc")
    assert load_library(source).answer() == 42


def test_sanitizers_are_asked_for_by_the_environment(source, cache, tmp_path, monkeypatch, load_again):
    """Their library is another one; here without the sanitizers, which Python would have to be started with."""
    strip = 'for word; do shift; case $word in -fsanitize*) ;; *) set -- "$@" "$word";; esac; done'
    log = fake_compiler(monkeypatch, tmp_path, f'{strip}\nrun "$@"')
    load_library(source)
    monkeypatch.setenv("VSSM_SANITIZE", "1")
    load_again(source)
    usual, sanitized = log.read_text().splitlines()
    assert "-fsanitize=address,undefined -g -fno-omit-frame-pointer" in sanitized
    assert "-fsanitize" not in usual
    assert len({path.name.split("-")[1] for path in cache.iterdir()}) == 2


def test_a_compiler_that_hangs_is_ended(source, tmp_path, monkeypatch):
    fake_compiler(monkeypatch, tmp_path, "exec sleep 60")
    monkeypatch.setattr(compiler, "_COMPILE_SECONDS", 0.1)
    with pytest.raises(CompilerError, match=r"fake-cc does not run: .*timed out after 0\.1 seconds"):
        load_library(source)


def test_a_compile_works_in_a_folder_of_its_own(source, cache, tmp_path, monkeypatch):
    """Whatever the compiler writes beside its output goes with it, also where it fails."""
    fake_compiler(monkeypatch, tmp_path, 'touch "$TMPDIR/half.o"; run "$@"')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    source.write_text("int f(void) { return undeclared; }")
    with pytest.raises(CompilerError, match=r"could not build answer\.c: .*undeclared"):
        load_library(source)
    assert not list(tmp_path.rglob("half.o"))
    assert list((tmp_path / "temporary").iterdir()) == list(cache.iterdir()) == []
