"""The rules of the house that a machine can check."""

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
import typing
from collections import OrderedDict
from pathlib import Path

import pytest
from mmengine.registry import DefaultScope

ROOT = Path(__file__).parents[1]
LIBRARY_FILES = sorted([*(ROOT / "vssm").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])
ALL_FILES = sorted([*LIBRARY_FILES, *(ROOT / "tools").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])

every_file = pytest.mark.parametrize("path", ALL_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
every_library_file = pytest.mark.parametrize("path", LIBRARY_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())


def module_name(path: Path) -> str:
    """vssm.scan.order for vssm/scan/order.py, vssm.scan for vssm/scan/__init__.py."""
    source_root = ROOT / "kernels" if path.is_relative_to(ROOT / "kernels") else ROOT
    return ".".join(path.relative_to(source_root).with_suffix("").parts).removesuffix(".__init__")


MODULES = [module_name(path) for path in LIBRARY_FILES if path.name != "__main__.py"]
PACKAGES = [module_name(path) for path in LIBRARY_FILES if path.name == "__init__.py"]


def test_dependence_runs_one_way():
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def imported_packages(path: Path) -> set[str]:
    """The top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@every_library_file
def test_only_the_packages_that_belong_there_are_imported(path):
    imported = imported_packages(path)
    if "mm" not in path.relative_to(ROOT).parts:
        assert not imported & {"mmengine", "mmcv", "mmdet", "mmseg"}, "only vssm.mm imports mmengine and its family"
    if path.is_relative_to(ROOT / "kernels"):
        assert not imported & {"timm", "torchvision", "vssm"}, "the kernels need torch and triton only"


@every_file
def test_file_is_short(path):
    limit = 600 if path.is_relative_to(ROOT / "kernels") else 400
    lines = len(path.read_text().splitlines())
    assert lines <= limit, f"{lines} lines; the guide is {limit}: could a part stand alone?"


@every_file
def test_checkpoints_are_never_unpickled_freely(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.keyword) and node.arg == "weights_only":
            assert getattr(node.value, "value", None) is True, f"line {node.value.lineno}: weights_only must be True"


@every_library_file
def test_library_does_not_print(path):
    if path.name == "__main__.py" or "cli" in path.parts:  # the command lines, whose output is text
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print":
            pytest.fail(f"line {node.lineno}: print; use logging")


@every_library_file
def test_no_exception_is_swallowed_whole(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"


@every_library_file
def test_file_says_what_it_is_for(path):
    if path.parent.name != "orders":  # one function each, whose docstring says it all
        assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("name", PACKAGES)
def test_what_a_package_offers_is_documented(name):
    module = importlib.import_module(name)
    undocumented = []
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        can_have_one = (callable(value) and not typing.get_origin(value)) or inspect.ismodule(value)
        if can_have_one and not inspect.getdoc(value):
            undocumented.append(public)
    assert undocumented == []


@every_file
def test_nothing_is_left_undone(path):
    if path == Path(__file__):
        return
    assert not re.findall(r"\b(?:TODO|FIXME|XXX)\b", path.read_text())


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    # As in a new process: without the default scope that trainings in this one have left behind.
    monkeypatch.setattr(DefaultScope, "_instance_dict", OrderedDict())
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples of {name} failed, see the output above"


def test_doctests_are_found():
    """The test above passes where there is no example: these are known to have one."""
    finder = doctest.DocTestFinder()
    for name in ("vssm", "vssm.scan.combine", "vssm.scan.order", "vssm_kernels.dispatch"):
        assert any(found.examples for found in finder.find(importlib.import_module(name))), name
