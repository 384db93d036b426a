"""tools/benchmark.py understands the documents' commands, and finds what is published."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location("benchmark_tool", ROOT / "tools/benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delitem(sys.modules, "_setup", raising=False)
    return module


def test_commands_of_the_documents_are_understood(benchmark):
    texts = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "tools/benchmark.py"]
    commands = [
        command
        for text in texts
        for command in re.findall(r"python tools/benchmark\.py\s((?:kernels|models|heads)\s[^`\n]+)", text.read_text())
    ]
    assert len(commands) >= 4
    for command in commands:
        assert benchmark.make_parser().parse_args(shlex.split(command)).command in command


def test_published_figures_are_found_by_the_names_of_models_aliases_and_recipes(benchmark):
    stated = {"published_parameters": "30M", "published_gflops": 4.9}
    assert benchmark.published("vmamba_tiny") == benchmark.published("vmamba_tiny_s1l8") == stated
    assert benchmark.published("mask_rcnn_vmamba_tiny_s1l8_1x_coco")["published_gflops"] == 271
    nothing = {"published_parameters": None, "published_gflops": None}
    assert benchmark.published("retinanet_vmamba_tiny_s1l8_1x_coco") == nothing
    assert benchmark.published("resnet50") == {}
