"""tools/benchmark.py accepts the documents' commands and finds published figures."""

import csv
import re
import shlex
from pathlib import Path

import pytest
import timm

from vssm.cli.benchmarks import benchmark_parser, published, run_benchmark, zoo
from vssm.errors import ConfigError
from vssm.models import FAMILIES

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


def test_the_zoo_has_a_model_of_every_family_and_models_of_timm_beside_them():
    names = zoo()
    assert len(set(names)) == len(names) and all(timm.is_model(name) for name in names)
    of_family = {name: family.name for family in FAMILIES.values() for name in family.models}
    assert {of_family[name] for name in names if name in of_family} == FAMILIES.keys()
    assert [name for name in names if name not in of_family][:2] == ["deit_tiny_patch16_224", "deit_small_patch16_224"]


def test_a_model_that_fails_is_named_at_the_end_and_the_rows_of_others_are_on_disk(tmp_path):
    """A transformer takes no image smaller than a patch."""
    file = tmp_path / "models.csv"
    command = f"models test_vit --sizes 160 1 176 --batch 1 --seconds 0 --device cpu --csv {file}"
    with pytest.raises(ConfigError, match=r"not wholly measured: test_vit at 1 px: .* divisible by patch size"):
        run_benchmark(benchmark_parser().parse_args(shlex.split(command)))
    rows = list(csv.DictReader(file.open()))
    assert [(row["model"], row["size"]) for row in rows] == [("test_vit", "160"), ("test_vit", "176")]


def test_of_several_rounds_each_row_is_the_quickest(tmp_path, monkeypatch):
    times = iter([3.0, 5.0, 4.0, 2.0])

    def measured(name, size, batch, *_, execution, **how):
        run = {"model": name, "size": size, "batch": batch, "mode": "infer", "execution": execution.value}
        return run | {"ms": next(times)}

    monkeypatch.setattr("vssm.cli.benchmarks.benchmark_model", measured)
    file = tmp_path / "models.csv"
    command = f"models test_vit test_resnet --sizes 160 --batch 1 --rounds 2 --device cpu --csv {file}"
    run_benchmark(benchmark_parser().parse_args(shlex.split(command)))
    rows = list(csv.DictReader(file.open()))
    assert [(row["model"], row["ms"]) for row in rows] == [("test_vit", "3.0"), ("test_resnet", "2.0")]


def test_seconds_are_a_number(capsys):
    with pytest.raises(SystemExit):
        benchmark_parser().parse_args(["models", "--seconds", "-1"])
    assert "takes a number from 0 to 3600, but got '-1'" in capsys.readouterr().err
