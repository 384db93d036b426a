"""tools/environment.py: when the environment is made, kept, or pointed to another checkout. No package is installed."""

import importlib.util
import multiprocessing
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Commands:
    """Replaces running commands: records them, creates what `python -m venv` would, fails on request."""

    def __init__(self):
        self.seen = []
        self.failing = ""

    def __call__(self, command, **_):
        text = " ".join(command)
        self.seen.append(text)
        if self.failing and self.failing in text:
            return 1
        if "-m venv" in text:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.touch(mode=0o755)
        return 0

    def take(self) -> list[str]:
        """The commands since last asked, in a word each."""
        words = {
            "-m venv": "venv",
            "--no-deps": "editable",
            "train,mm,export,dev": "dependencies",
            " setuptools": "setuptools",
        }
        taken = [next(word for part, word in words.items() if part in text) for text in self.seen]
        self.seen.clear()
        return taken


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """The script on a copy of the files it reads, with its commands recorded instead of run."""
    spec = importlib.util.spec_from_file_location("environment", ROOT / "tools" / "environment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
        (checkout / name).write_text((ROOT / name).read_text())
    monkeypatch.setattr(module, "ROOT", str(checkout))
    commands = Commands()
    monkeypatch.setattr(module.subprocess, "call", commands)
    module.commands = commands
    return module


WHOLE = ["venv", "setuptools", "dependencies"]


def edit(environment, name, old, new):
    path = Path(environment.ROOT) / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_it_is_made_once(environment, tmp_path):
    environment.update(str(tmp_path / "venv"))
    assert environment.commands.take() == WHOLE
    environment.update(str(tmp_path / "venv"))
    assert environment.commands.take() == []


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("setup.cfg", "timm>=1.0.31", "timm>=1.0.30"),
        ("setup.cfg", "tensorboard>=2.15", "tensorboard>=2.16"),
        ("constraints.txt", "timm==1.0.31", "timm==1.0.30"),
        ("pyproject.toml", "setuptools>=77", "setuptools>=78"),
    ],
)
def test_it_is_made_anew_when_an_input_changes(environment, tmp_path, name, old, new):
    environment.update(str(tmp_path / "venv"))
    left_behind = tmp_path / "venv" / "of-the-old-environment"
    left_behind.touch()
    environment.commands.take()
    edit(environment, name, old, new)
    environment.update(str(tmp_path / "venv"))
    assert environment.commands.take() == WHOLE
    assert not left_behind.exists()


def test_other_edits_only_renew_the_projects_own_metadata(environment, tmp_path):
    environment.update(str(tmp_path / "venv"))
    key = environment.inputs_key()
    environment.commands.take()
    edit(environment, "setup.cfg", "testpaths = tests", "testpaths = tests tools")
    assert environment.inputs_key() == key
    environment.update(str(tmp_path / "venv"))
    assert environment.commands.take() == ["editable"]
    environment.update(str(tmp_path / "venv"))
    assert environment.commands.take() == []


def test_one_environment_serves_several_checkouts(environment, tmp_path, monkeypatch):
    first = environment.ROOT
    environment.update(str(tmp_path / "venv"))
    environment.commands.take()
    Path(first).rename(tmp_path / "second")
    monkeypatch.setattr(environment, "ROOT", str(tmp_path / "second"))
    environment.update(str(tmp_path / "venv"))
    assert environment.commands.take() == ["editable"]


@pytest.mark.parametrize("step", ["-m venv", " setuptools", "[train,mm,export,dev]"])
def test_an_interrupted_making_is_repeated(environment, tmp_path, step):
    environment.commands.failing = step
    with pytest.raises(SystemExit, match="environment: "):
        environment.update(str(tmp_path / "venv"))
    environment.commands.failing = ""
    environment.commands.take()
    environment.update(str(tmp_path / "venv"))
    assert environment.commands.take() == WHOLE


def test_a_failed_pointing_is_repeated(environment, tmp_path):
    environment.update(str(tmp_path / "venv"))
    edit(environment, "setup.cfg", "testpaths = tests", "testpaths = tests tools")
    environment.commands.failing = "--no-deps"
    with pytest.raises(SystemExit, match="installation failed"):
        environment.update(str(tmp_path / "venv"))
    environment.commands.failing = ""
    environment.commands.take()
    environment.update(str(tmp_path / "venv"))
    assert environment.commands.take() == ["editable"]


def test_it_is_made_anew_when_its_python_is_gone(environment, tmp_path):
    environment.update(str(tmp_path / "venv"))
    (tmp_path / "venv" / "bin" / "python").unlink()
    environment.commands.take()
    environment.update(str(tmp_path / "venv"))
    assert environment.commands.take() == WHOLE


def test_a_folder_of_someone_else_is_left_alone(environment, tmp_path):
    theirs = tmp_path / "venv" / "thesis.tex"
    theirs.parent.mkdir()
    theirs.touch()
    with pytest.raises(SystemExit, match="exists and was not made by make"):
        environment.update(str(tmp_path / "venv"))
    assert theirs.exists() and environment.commands.take() == []


def test_an_old_python_is_named(environment, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit, match=r"this is Python 3\.9; vssm needs 3\.10 or newer"):
        environment.check_python()


def test_a_python_without_venv_is_told_the_package(environment, monkeypatch):
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(SystemExit, match="apt-get install python3-venv"):
        environment.check_python()


def work(directory: str, diary: Path) -> None:
    """In a process of its own: note the beginning and the end of some work done under the lock."""
    spec = importlib.util.spec_from_file_location("environment", ROOT / "tools" / "environment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.alone(directory), diary.open("a") as file:
        file.write("begin\n")
        file.flush()
        time.sleep(0.2)
        file.write("end\n")


def test_processes_take_turns(tmp_path):
    context = multiprocessing.get_context("spawn")
    arguments = (str(tmp_path / "new" / "venv"), tmp_path / "diary")
    processes = [context.Process(target=work, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "diary").read_text().split() == ["begin", "end"] * 2
