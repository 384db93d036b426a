"""Stored kernels: who may have written what is loaded, what happens to damaged files, and where they lie."""

import _ctypes
import logging
import os
import pwd
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from vssm_kernels import kernel_cache
from vssm_kernels.compiler import find_compiler, load_library

if sys.platform == "win32":
    pytest.skip("no kernels are compiled on Windows", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("fresh_process")
OTHER_USER = 54321  # no account has this number
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


def stored(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.so"))


def forget(source: Path, cache: Path) -> Path:
    """Compile and store a library, and forget it. Returns where it is stored."""
    _ctypes.dlclose(load_library(source)._handle)
    load_library.cache_clear()
    (library,) = stored(cache)
    return library


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
    own = forget(source, cache)
    own.unlink()
    (tmp_path / "planted.c").write_text("int answer(void) { return 13; }\n")
    library = tmp_path / "planted.so"
    command = [find_compiler(), "-shared", "-fPIC", str(tmp_path / "planted.c"), "-o", str(library)]
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
def test_a_damaged_library_is_compiled_again(source, cache, damage, reason, load_again, caplog):
    library = forget(source, cache)
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
    own = forget(source, cache)
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
    assert f"user {os.geteuid()} has no home folder. VSSM_CACHE=/absolute/path names another" in caplog.text
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_cache_relative_to_the_working_directory_is_refused(source, tmp_path, monkeypatch, caplog):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("VSSM_CACHE", ".")
    assert load_library(source).answer() == 42
    assert "VSSM_CACHE=. depends on the working directory; write the absolute path" in caplog.text
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
    assert "cannot store compiled kernels" in caplog.text
    assert list((tmp_path / "temporary").iterdir()) == []


# What a killed process leaves

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
