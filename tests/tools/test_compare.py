"""tools/compare.py from start to end: a small model on the CPU, and its table in a document."""

import csv
import importlib
from pathlib import Path

import pytest
import timm

ROOT = Path(__file__).resolve().parents[2]
STUDY = f"""
title = 'A small model'
recipe = {str(ROOT / "configs/studies/recipe.py")!r}
seeds = (0,)
_small = dict(name='vmamba_tiny', dims=(16, 32), depths=(1, 1))
runs = {{
    'raster': dict(model=dict(backbone=dict(scan_order='raster', **_small))),
}}
measured = dict(size=32, batch=2, seconds=0.05)
"""
SETS = [f"{part}_dataloader.dataset" for part in ("train", "val")]


def test_a_small_study(run, tmp_path, shapes_root, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    study = tmp_path / "small.py"
    study.write_text(STUDY)
    small = {"root": shapes_root, "train": 32, "val": 20, "image_size": 32, "transform.input_size": 32}
    options = [f"{name}.{key}={value}" for name in SETS for key, value in small.items()]
    options += ["train_cfg.max_epochs=2", "train_dataloader.batch_size=8", "train_dataloader.num_workers=0"]
    options += ["val_dataloader.num_workers=0"]
    out = tmp_path / "docs" / "studies"
    done = run(ROOT / "tools/compare.py", study, "--out", out, "--cfg-options", *options)
    assert done.returncode == 0, done.stderr
    assert "1/1  raster, seed 0: " in done.stdout and "1/1  raster: " in done.stdout

    with (out / "small.csv").open() as file:
        rows = list(csv.DictReader(file))
    (row,) = rows
    assert (row["label"], row["seed"]) == ("raster", "0")
    assert 0 <= float(row["top1"]) <= 100 and float(row["train_images_per_second"]) > 0
    model = timm.create_model("vmamba_tiny", dims=(16, 32), depths=(1, 1), scan_order="raster", num_classes=10)
    assert float(row["parameters_m"]) == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6, rel=1e-2)
    assert row["command"].startswith("python ") and row["torch"] and row["commit"]
    assert (out / "small.png").read_bytes()[:4] == b"\x89PNG"
    page = (out / "small.md").read_text()
    assert page.startswith("# A small model\n\n| model | top-1, mean (lowest to highest) | parameters, M |")
    _a_document_takes_the_table(tmp_path, page.split("\n\n", 1)[1].rpartition("\n\n")[0])


def _a_document_takes_the_table(root: Path, table: str) -> None:
    """What `make cards` does, on the study's CSV."""
    tables = importlib.import_module("model_tables")
    (root / "model_cards").mkdir()
    (root / "model_cards" / "results.yaml").write_text("families: {}\nmeasured: []\n")
    guide = root / "docs" / "guide.md"
    guide.write_text(
        "<!-- table: study small -->\n\n<!-- end of table -->\n\n<!-- table: study other -->\n<!-- end of table -->\n"
    )
    assert tables.main(["--check"], root) == 1
    assert tables.main([], root) == 0 == tables.main(["--check"], root)
    assert table in guide.read_text() and "![accuracy and costs of each model](studies/small.png)" in guide.read_text()
    assert "Nothing is recorded yet." in guide.read_text().split("study other")[1]


def test_what_cannot_be_is_said_in_a_sentence(run, tmp_path):
    study = tmp_path / "small.py"
    study.write_text(STUDY.replace("seeds = (0,)", "seed = 0"))
    done = run(ROOT / "tools/compare.py", study)
    assert done.returncode == 1 and "no option 'seed'; did you mean 'seeds'?" in done.stderr
    assert "Traceback" not in done.stderr
