"""tools/benchmark.py accepts the documents' commands and finds published figures."""

import re
import shlex
from pathlib import Path

from vssm.cli.benchmarks import benchmark_parser, published

ROOT = Path(__file__).resolve().parents[2]


def test_commands_of_the_documents_are_understood():
    texts = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "vssm/cli/benchmarks.py"]
    commands = [
        command
        for text in texts
        for command in re.findall(
            r"tools/benchmark\.py\s((?:kernels|models|heads|host|export)\s[^`\n]+)", text.read_text()
        )
    ]
    assert len(commands) >= 4
    for command in commands:
        assert benchmark_parser().parse_args(shlex.split(command)).command in command


def test_published_figures_are_found_by_the_names_of_models_aliases_and_recipes():
    stated = {"published_parameters": "30M", "published_gflops": 4.9}
    assert published("vmamba_tiny") == published("vmamba_tiny_s1l8") == stated
    assert published("mask_rcnn_vmamba_tiny_s1l8_1x_coco")["published_gflops"] == 271
    nothing = {"published_parameters": None, "published_gflops": None}
    assert published("retinanet_vmamba_tiny_s1l8_1x_coco") == nothing
    assert published("resnet50") == {}
