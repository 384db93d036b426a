"""Studies: their files are read and checked, trainings run, results are reused, and failures are explained."""

import json
import re
import sys
from pathlib import Path

import pytest
import timm
import torch

from vssm.errors import ConfigError
from vssm.mm.tasks.study import MEASUREMENTS, last_accuracy, load_study, measure, train_study
from vssm.models import FAMILIES

STUDIES = Path(__file__).resolve().parents[3] / "configs" / "studies"
STUDY = f"""
title = 'small'
recipe = {str(STUDIES / "recipe.py")!r}
seeds = (0, 1)
runs = {{
    'a, plain': dict(model=dict(backbone=dict(name='vmamba_tiny'))),
    'b': dict(model=dict(backbone=dict(name='vmamba_tiny', scan_order='hilbert'))),
}}
measured = dict(size=32, batch=2, seconds=0.1)
"""
# Stands for tools/train.py: takes its arguments, logs an accuracy as mmengine does, and the number of its threads.
TRAIN = """
import argparse, json, os, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("config", type=pathlib.Path)
parser.add_argument("--seed", type=int)
parser.add_argument("--work-dir", type=pathlib.Path)
given = parser.parse_args()
print("threads:", os.environ["OMP_NUM_THREADS"], "gpu:", repr(os.environ["CUDA_VISIBLE_DEVICES"]))
hilbert = "hilbert" in given.config.read_text()
if hilbert and given.seed == {bad_seed}:
    raise SystemExit("no such luck")
logs = given.work_dir / "20260101_000000" / "vis_data"
logs.mkdir(parents=True, exist_ok=True)
lines = [{{"loss": 1.0}}, {{"accuracy/top1": 10.0}}, {{"accuracy/top1": 80.0 + given.seed + 10 * hilbert}}]
(logs / "scalars.json").write_text("".join(json.dumps(line) + "\\n" for line in lines))
"""


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(STUDY)
    return path


@pytest.fixture
def train(study_file, tmp_path):
    """Train the small study with a stand-in for tools/train.py; returns its rows, what was reported, and failures."""

    def call(bad_seed: int = -1, options: dict | None = None) -> tuple[list[dict], list[str], list[str]]:
        command = [sys.executable, "-c", TRAIN.format(bad_seed=bad_seed)]
        told = []
        study = load_study(study_file, options)
        rows, failures = train_study(study, tmp_path / "work", command, 2, lambda done, total, text: told.append(text))
        return rows, told, failures

    return call


@pytest.mark.parametrize(
    "path", sorted(set(STUDIES.glob("*.py")) - {STUDIES / "recipe.py"}), ids=lambda path: path.stem
)
def test_models_of_the_studies_are_built(path):
    study = load_study(path)
    assert path.read_text().startswith(f"# Command: python tools/compare.py configs/studies/{path.name} ")
    for config in study.runs.values():
        arguments = dict(config.model.backbone)
        assert timm.create_model(arguments.pop("name"), **arguments, device="meta").num_classes == 10
        assert config.val_dataloader.dataset.transform.input_size == study.measured["size"]


def test_the_study_of_orders_compares_families_and_orders():
    """Several families' models, and one model with five scan orders."""
    backbones = [config.model.backbone for config in load_study(STUDIES / "scan_orders.py").runs.values()]
    names = {backbone.name for backbone in backbones}
    assert sum(bool(names & set(family.models)) for family in FAMILIES.values()) >= 4
    orders = [(each.name, each.scan_order) for each in backbones if "scan_order" in each]
    assert len(set(orders)) == 4 and {name for name, _ in orders} < names
    own = {backbone.name for backbone in backbones if "scan_order" not in backbone}
    assert {name for name, _ in orders} <= own, "beside its own order"


def test_options_change_every_run(study_file):
    study = load_study(study_file, {"train_cfg.max_epochs": 3, "model.label_smoothing": 0.0}, seeds=[7])
    assert [config.train_cfg.max_epochs for config in study.runs.values()] == [3, 3]
    assert [config.model.backbone.get("scan_order") for config in study.runs.values()] == [None, "hilbert"]
    assert study.seeds == (7,) and study.measured == {"size": 32, "batch": 2, "seconds": 0.1}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title =", "titel =", r"no option 'titel'; did you mean 'title'"),
        ("seeds = (0, 1)", "seeds = ()", "missing or empty are seeds"),
        ("seeds = (0, 1)", "seeds = (0, 1, 0)", "the seeds are 0, 1, 0; expected each once"),
        (", seconds=0.1", "", "missing or empty are measured.seconds"),
        ("'b':", "'A - Plain':", "labels must differ in letters or digits"),
        ("dict(model=dict(backbone=dict(name='vmamba_tiny'))),", "dict(modle=1),", "did you mean 'model'"),
        ("recipe.py", "rezept.py", "there is no configuration file .*rezept.py"),
    ],
)
def test_a_wrong_study_says_what_is_wrong(study_file, old, new, message):
    study_file.write_text(STUDY.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        load_study(study_file)


def test_every_run_is_trained_with_every_seed(train, tmp_path):
    rows, told, _ = train()
    assert [(row["label"], row["seed"], row["top1"]) for row in rows] == [
        ("a, plain", 0, 80.0),
        ("a, plain", 1, 81.0),
        ("b", 0, 90.0),
        ("b", 1, 91.0),
    ]
    assert all(row["seconds"] > 0 for row in rows) and len(told) == 4
    assert (tmp_path / "work" / "a_plain" / "seed_1" / "log.txt").read_text().startswith("threads: ")


def test_trainings_are_spread_over_the_gpus(train, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    train()
    logs = [path.read_text().strip() for path in sorted(tmp_path.glob("work/*/seed_0/log.txt"))]
    assert [log.partition(" gpu: ")[2] for log in logs] == ["'5'", "'7'"]


def test_results_are_reused(train, tmp_path):
    first, *_ = train()
    (tmp_path / "work" / "b" / "seed_1" / "result.json").unlink()  # as if interrupted before its end
    second, told, _ = train()
    assert [text.endswith("(from an earlier run)") for text in told] == [True, True, True, False]
    assert [row["top1"] for row in second] == [row["top1"] for row in first]
    assert second[0]["seconds"] == first[0]["seconds"]
    _, told, _ = train(options={"train_cfg.max_epochs": 3})
    assert not any(text.endswith("(from an earlier run)") for text in told)


def test_a_failure_names_its_run_and_the_other_results_are_saved(train):
    rows, told, (failure,) = train(bad_seed=1)
    assert re.match(r"(?s)the training b, seed 1 failed with exit code 1; .*no such luck", failure)
    assert [(row["label"], row["seed"]) for row in rows] == [("a, plain", 0), ("a, plain", 1), ("b", 0)]
    assert "b, seed 1: failed" in told
    _, told, failures = train()
    assert sum(text.endswith("(from an earlier run)") for text in told) == 3 and not failures


def test_what_was_measured_is_reused_and_a_failure_stops_no_other(study_file, tmp_path, monkeypatch):
    """Costs are of the code, the machine and the model: other arguments are measured anew."""
    measured = []

    def stand_in(name: str, *sizes: object, training: bool, arguments: dict, **how: object) -> dict[str, object]:
        measured.append(arguments.get("scan_order"))
        if arguments.get("scan_order") == bad:
            raise RuntimeError("no graph")
        return dict.fromkeys(MEASUREMENTS, 1.0) | {"images_per_second": 2.0 + training, "peak_gib": None}

    def call() -> tuple[dict[str, dict], list[str]]:
        measured.clear()
        return measure(load_study(study_file), tmp_path / "work", torch.device("cpu"), lambda *told: None)

    monkeypatch.setattr("vssm.mm.tasks.study.benchmark_model", stand_in)
    bad = "hilbert"
    costs, failures = call()
    assert measured == [None, None, "hilbert"] and failures == ["b could not be measured: RuntimeError: no graph"]
    assert costs["a, plain"]["infer_images_per_second"] == 2 and set(costs["b"].values()) == {None}
    bad = "none is"
    again, failures = call()
    assert measured == ["hilbert"] * 2 and not failures and again["a, plain"] == costs["a, plain"]
    study_file.write_text(STUDY.replace("hilbert", "zigzag"))
    call()
    assert measured == ["zigzag"] * 2


def test_the_last_accuracy_of_the_last_start_counts(tmp_path):
    assert last_accuracy(tmp_path) is None
    for stamp, scores in (("20260102_000000", (50.0, 60.0)), ("20260101_000000", (90.0,))):
        folder = tmp_path / stamp / "vis_data"
        folder.mkdir(parents=True)
        lines = [json.dumps({"accuracy/top1": score}) for score in scores]
        (folder / "scalars.json").write_text("\n".join(lines) + "\n")
    assert last_accuracy(tmp_path) == 60.0
