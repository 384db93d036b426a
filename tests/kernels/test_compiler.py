"""Compiled kernels: who may have written what is loaded, what happens to damaged files, and what a compile leaves."""

import _ctypes
import ctypes
import logging
import os
import pwd
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from vssm_kernels import compiler, kernel_cache
from vssm_kernels.compiler import CompilerError, load_library, why_no_library

if sys.platform == "win32":
    pytest.skip("no kernels are compiled on Windows", allow_module_level=True)

OTHER_USER = 54321  # no account has this number
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """As in a new process: nothing loaded, nothing said; the cache and temporary files lie in the test's folder."""
    for cached in (load_library, why_no_library, kernel_cache.warn_once, compiler._builds_with):
        cached.cache_clear()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("VSSM_CACHE", str(tmp_path / "cache"))
    yield
    load_library.cache_clear()


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path) -> Path:
    """A C function that returns 42, whose text no other test has: a process maps a library only once."""
    path = tmp_path / "answer.c"
    path.write_text(f"/* {tmp_path} */ int answer(void) {{ return 42; }}\n")
    return path


def load_again(source: Path) -> ctypes.CDLL:
    """Load as a new process would, from the disk."""
    _ctypes.dlclose(load_library(source)._handle)
    load_library.cache_clear()
    return load_library(source)


def stored(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.so"))


def fake_compiler(monkeypatch, folder: Path, script: str) -> Path:
    """A shell script as $CC; `run` in it is the real compiler. Its arguments are logged, a line for each call."""
    path = folder / "fake-cc"
    log = folder / "calls"
    run = f'run() {{ exec {compiler.find_compiler()} "$@"; }}'
    path.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{run}\n{script}\n')
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))
    return log


@contextmanager
def as_user(user: int):
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


# Who may have written it


def plant(source: Path, cache: Path, tmp_path: Path) -> Path:
    """A library that returns 13 in the place where `load_library(source)` looks for its own, with the right name."""
    _ctypes.dlclose(load_library(source)._handle)
    load_library.cache_clear()
    (own,) = stored(cache)
    own.unlink()
    (tmp_path / "planted.c").write_text("int answer(void) { return 13; }\n")
    library = tmp_path / "planted.so"
    command = [compiler.find_compiler(), "-shared", "-fPIC", str(tmp_path / "planted.c"), "-o", str(library)]
    subprocess.run(command, check=True)
    return kernel_cache.store(library, cache, own.name.rpartition("-")[0])


def test_a_library_in_the_private_folder_is_loaded(source, cache, tmp_path):
    """What the tests below plant would be loaded if it were not for its owner or mode."""
    plant(source, cache, tmp_path)
    assert load_library(source).answer() == 13


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_that_others_can_write_is_refused(source, cache, tmp_path, mode, caplog):
    planted = plant(source, cache, tmp_path)
    cache.chmod(mode)
    assert load_library(source).answer() == 42
    assert f"{cache} is not private: others can write it (mode {mode:o})" in caplog.text
    assert stored(cache) == [planted], "a folder that is not trusted is left as it is"
    assert list((tmp_path / "temporary").iterdir()) == []


@needs_root
def test_the_folder_of_another_user_is_refused(source, cache, tmp_path, caplog):
    plant(source, cache, tmp_path)
    os.chown(cache, OTHER_USER, -1)
    assert load_library(source).answer() == 42
    assert f"it belongs to user {OTHER_USER}, this process runs as user 0" in caplog.text


@needs_root
def test_a_link_that_another_user_made_is_refused(source, cache, tmp_path, monkeypatch, caplog):
    planted = plant(source, cache, tmp_path)
    link = tmp_path / "link"
    link.symlink_to(cache)
    monkeypatch.setenv("VSSM_CACHE", str(link))
    os.lchown(link, OTHER_USER, -1)
    assert load_library(source).answer() == 42
    assert f"{link} is a link that user {OTHER_USER} made" in caplog.text
    assert stored(cache) == [planted]


def test_a_link_of_ones_own_is_followed(source, cache, tmp_path, monkeypatch, caplog):
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    cache.symlink_to(tmp_path / "elsewhere")
    assert load_library(source).answer() == 42
    assert len(stored(tmp_path / "elsewhere")) == 1
    assert not caplog.records


def test_a_file_that_others_can_write_is_replaced(source, cache, tmp_path, caplog):
    planted = plant(source, cache, tmp_path)
    planted.chmod(0o602)
    assert load_library(source).answer() == 42
    assert "others can write it (mode 602)" in caplog.text
    assert not planted.exists()


@needs_root
def test_a_file_of_another_user_is_replaced(source, cache, tmp_path, caplog):
    planted = plant(source, cache, tmp_path)
    os.chown(planted, OTHER_USER, -1)
    assert load_library(source).answer() == 42
    assert f"it belongs to user {OTHER_USER}" in caplog.text
    assert not planted.exists()


@needs_root
def test_every_user_is_checked_as_who_they_are(monkeypatch):
    """Root's folder is no better than another's: only the user who loads a library may have made it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o777)
        monkeypatch.setenv("VSSM_CACHE", f"{folder}/root/vssm")
        with kernel_cache.open_cache():
            pass
        for path in ("root", "root/vssm"):
            os.chmod(f"{folder}/{path}", 0o755)
        with as_user(OTHER_USER):
            with pytest.raises(PermissionError, match=f"user 0, this process runs as user {OTHER_USER}"):
                kernel_cache.open_cache().__enter__()
            monkeypatch.setenv("VSSM_CACHE", f"{folder}/own/vssm")
            with kernel_cache.open_cache():
                assert os.stat(f"{folder}/own/vssm").st_uid == OTHER_USER


def test_everything_that_is_made_is_private_whatever_the_umask(source, tmp_path, monkeypatch):
    monkeypatch.setenv("VSSM_CACHE", str(tmp_path / "new" / "cache"))
    before = os.umask(0)
    try:
        load_library(source)
    finally:
        os.umask(before)
    made = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert len(made) == 3
    assert [oct(path.stat().st_mode & 0o077) for path in made] == ["0o0"] * 3


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="without /proc a folder is reached by its own path")
def test_a_checked_folder_stays_the_same_when_its_path_changes(tmp_path):
    (tmp_path / "home" / "cache").mkdir(parents=True, mode=0o700)
    with kernel_cache.private_folder(tmp_path / "home" / "cache") as folder:
        (tmp_path / "home").rename(tmp_path / "moved")
        (tmp_path / "home" / "cache").mkdir(parents=True)
        (folder / "library").touch()
    assert (tmp_path / "moved" / "cache" / "library").exists()


# Damaged files


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[500:900] = b"\xff" * 400
    path.write_bytes(contents)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_text(path: Path) -> None:
    path.write_text("not a library")


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        *((damage, "bytes are not those that were stored") for damage in (truncate, overwrite, empty, replace_by_text)),
        (replace_by_pipe, "not a regular file"),
        (replace_by_link, "symbolic links"),
    ],
)
def test_a_damaged_library_is_compiled_again(source, cache, damage, reason, caplog):
    _ctypes.dlclose(load_library(source)._handle)
    load_library.cache_clear()
    (library,) = stored(cache)
    contents = library.read_bytes()
    damage(library)
    assert load_library(source).answer() == 42
    assert library.read_bytes() == contents
    assert not library.is_symlink()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert library.name in record.message
    assert reason in record.message
    assert load_again(source).answer() == 42
    assert len(caplog.records) == 1


@needs_root
def test_an_unreadable_library_is_removed():
    """For the compile that follows; root can read everything, so this is another user's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chown(folder, OTHER_USER, -1)
        with as_user(OTHER_USER):
            path = Path(folder, "kernel-0123456789abcdef.so")
            path.touch(mode=0)
            assert list(kernel_cache.stored_libraries(Path(folder), "kernel")) == []
            assert not path.exists()


def test_a_library_that_this_system_cannot_load_stays_beside_the_new_one(source, cache, tmp_path, caplog):
    """A home shared by machines with different C libraries: each finds its own."""
    _ctypes.dlclose(load_library(source)._handle)
    load_library.cache_clear()
    (own,) = stored(cache)
    own.unlink()
    (tmp_path / "foreign").write_text("needs GLIBC_9.99")
    foreign = kernel_cache.store(tmp_path / "foreign", cache, own.name.rpartition("-")[0])
    assert load_library(source).answer() == 42
    assert stored(cache) == sorted([own, foreign])
    assert not caplog.records


# Places


def test_without_a_home_kernels_are_compiled_for_the_process(source, tmp_path, monkeypatch, caplog):
    def unknown(user):
        raise KeyError(f"getpwuid(): uid not found: {user}")

    for name in ("HOME", "VSSM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert load_library(source).answer() == 42
    assert f"user {os.geteuid()} has no home folder; set VSSM_CACHE" in caplog.text
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_cache_relative_to_the_working_directory_is_refused(source, tmp_path, monkeypatch, caplog):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("VSSM_CACHE", ".")
    assert load_library(source).answer() == 42
    assert "VSSM_CACHE=. depends on the working directory; write the whole path" in caplog.text
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("unset", ["", "caches"])
def test_an_empty_or_relative_xdg_folder_is_ignored(tmp_path, monkeypatch, unset):
    monkeypatch.setenv("VSSM_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", unset)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kernel_cache.cache_path() == tmp_path / ".cache" / "vssm"


def test_a_folder_that_cannot_be_made_leaves_nothing_behind(source, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VSSM_CACHE", str(tmp_path / "file" / "cache"))
    assert load_library(source).answer() == 42
    assert "cannot keep compiled kernels" in caplog.text
    assert list((tmp_path / "temporary").iterdir()) == []


# Compilers that fail


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
    path = tmp_path / "threads.c"
    path.write_text(f"/* {tmp_path} */\n#ifdef _OPENMP\nint threads = 1;\n#else\nint threads = 0;\n#endif\n")
    return path


def has_threads(library: ctypes.CDLL) -> bool:
    return bool(ctypes.c_int.in_dll(library, "threads").value)


def test_a_compiler_that_failed_once_is_asked_for_openmp_again(threads, cache, tmp_path, monkeypatch):
    fake_compiler(monkeypatch, tmp_path, f'[ -e {tmp_path}/failed ] && run "$@"\ntouch {tmp_path}/failed; exit 1')
    with pytest.raises(CompilerError, match=r"could not build threads\.c: exit status 1"):
        load_library(threads)
    assert stored(cache) == []
    assert has_threads(load_library(threads))


def test_openmp_is_dropped_where_the_compiler_refuses_it(threads, tmp_path, monkeypatch, caplog):
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


def test_sanitizers_are_asked_for_by_the_environment(source, cache, tmp_path, monkeypatch):
    """Their library is another one; here without the sanitizers, which Python would have to be started with."""
    strip = 'for word; do shift; case $word in -fsanitize*) ;; *) set -- "$@" "$word";; esac; done'
    log = fake_compiler(monkeypatch, tmp_path, f'{strip}\nrun "$@"')
    load_library(source)
    monkeypatch.setenv("VSSM_SANITIZE", "1")
    load_again(source)
    usual, sanitized = log.read_text().splitlines()
    assert "-fsanitize=address,undefined -g -fno-omit-frame-pointer" in sanitized
    assert "-fsanitize" not in usual
    assert len({path.name.split("-")[1] for path in stored(cache)}) == 2


# What a compile leaves

HOLD = """
import sys
sys.path.insert(0, sys.argv[1])
import kernel_cache
from pathlib import Path
with kernel_cache.scratch_folder(Path(sys.argv[2])) as folder:
    (folder / "half.so").touch()
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_unfinished_files_of_killed_processes_are_removed(tmp_path):
    """Those of living ones stay."""
    where = tmp_path / "temporary"
    command = [sys.executable, "-c", HOLD, str(Path(kernel_cache.__file__).parent), str(where)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            with kernel_cache.scratch_folder(where):
                pass
            (left,) = where.iterdir()
        finally:
            process.kill()
    assert (left / "half.so").exists()
    with kernel_cache.scratch_folder(where):
        assert not left.exists()
    assert list(where.iterdir()) == []


def test_a_compile_works_in_a_folder_of_its_own(source, cache, tmp_path, monkeypatch):
    """Whatever the compiler writes beside its output goes with it, also where it fails."""
    fake_compiler(monkeypatch, tmp_path, 'touch "$TMPDIR/half.o"; run "$@"')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    source.write_text("int f(void) { return undeclared; }")
    with pytest.raises(CompilerError, match="undeclared"):
        load_library(source)
    assert not list(tmp_path.rglob("half.o"))
    assert list((tmp_path / "temporary").iterdir()) == list(cache.iterdir()) == []
