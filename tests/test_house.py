"""The rules of the house that a machine can check."""

import ast
import doctest
import importlib
import inspect
import re
import typing
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.registry import DefaultScope

ROOT = Path(__file__).parents[1]
LIBRARY_FILES = sorted([*(ROOT / "vssm").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])
ALL_FILES = sorted([*LIBRARY_FILES, *(ROOT / "tools").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])


def module_name(path: Path) -> str:
    """vssm.scan.order for vssm/scan/order.py, vssm.scan for vssm/scan/__init__.py."""
    source_root = ROOT / "kernels" if path.is_relative_to(ROOT / "kernels") else ROOT
    return ".".join(path.relative_to(source_root).with_suffix("").parts).removesuffix(".__init__")


MODULES = [module_name(path) for path in LIBRARY_FILES if path.name != "__main__.py"]
PACKAGES = [module_name(path) for path in LIBRARY_FILES if path.name == "__init__.py"]


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_file_keeps_the_rules(path):
    assert list(broken_rules(path)) == []


def broken_rules(path: Path) -> Iterator[str]:
    """A sentence for each rule that a file breaks."""
    text, limit = path.read_text(), 600 if path.is_relative_to(ROOT / "kernels") else 400
    tree, lines = ast.parse(text), len(text.splitlines())
    if lines > limit:
        yield f"{lines} lines; the guide is {limit}: could a part stand alone?"
    if path != Path(__file__):
        yield from (f"{word} is left undone" for word in re.findall(r"\b(?:TODO|FIXME|XXX)\b", text))
    for node in ast.walk(tree):
        is_choice = isinstance(node, ast.keyword) and node.arg == "weights_only"
        if is_choice and getattr(node.value, "value", None) is not True:
            yield f"line {node.value.lineno}: weights_only must be True"
    if path in LIBRARY_FILES:
        yield from broken_rules_of_the_library(path, tree)


ALLOCATIONS = {
    "torch.arange": {"device"},
    **{f"torch.{name}": {"dtype", "device"} for name in ("empty", "empty_strided", "full", "ones", "zeros")},
}


def allocations_that_look_at_modes(tree: ast.Module) -> Iterator[str]:
    """Of memory that kernels write to by address: no default dtype or device must decide what it is."""
    for node in ast.walk(tree):
        function = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if function in ALLOCATIONS:
            given = {keyword.arg for keyword in node.keywords}
            missing = ALLOCATIONS[function] - given
            if missing and None not in given:  # None is **keywords
                yield f"line {node.lineno}: {function} must be given {' and '.join(sorted(missing))}"


def test_an_allocation_that_looks_at_modes_is_named():
    tree = ast.parse("y = torch.empty(3, device=d)\nz = torch.empty(3, dtype=t, device=d)\nt = torch.zeros(2, **how)")
    assert list(allocations_that_look_at_modes(tree)) == ["line 1: torch.empty must be given dtype"]


def broken_rules_of_the_library(path: Path, tree: ast.Module) -> Iterator[str]:
    imported = set(imported_packages(tree))
    if "mm" not in path.relative_to(ROOT).parts and imported & {"mmengine", "mmcv", "mmdet", "mmseg"}:
        yield "only vssm.mm imports mmengine and its family"
    if path.is_relative_to(ROOT / "kernels") and imported & {"timm", "torchvision", "vssm"}:
        yield "the kernels need torch and triton only"
    if path.is_relative_to(ROOT / "kernels"):
        yield from allocations_that_look_at_modes(tree)
    if path.parent.name != "orders" and not ast.get_docstring(tree):  # one function each, whose docstring says it all
        yield "the file does not say what it is for"
    is_command = path.name == "__main__.py" or "cli" in path.parts  # whose output is text
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print" and not is_command:
            yield f"line {node.lineno}: print; use logging"
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"line {node.lineno}: bare except"


def imported_packages(tree: ast.Module) -> Iterator[str]:
    """The top-level packages that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def test_files_that_break_every_rule(monkeypatch):
    """The test above passes where a rule finds nothing."""
    bad = ROOT / "vssm" / "bad.py"
    text = "import mmengine\nprint(1)\ntorch.load(x, weights_only=False)\ntry:\n    x\nexcept:\n    pass\n"
    monkeypatch.setattr(Path, "read_text", lambda path: text + "# TO" + "DO\n" * 400)
    monkeypatch.setattr("test_house.LIBRARY_FILES", [bad])
    told = "\n".join(broken_rules(bad))
    for part in ("lines; the guide", "left undone", "must be True", "only vssm.mm", "what it is for", "print", "bare"):
        assert part in told


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
