"""Summaries and tables of a study's rows, from memory and from a file."""

import pytest
import torch

from vssm.bench import environment, write_csv
from vssm.bench.summary import (
    COSTS,
    heads_table,
    kernels_table,
    operators_table,
    orders_table,
    read_rows,
    study_table,
    summarise,
    throughput_table,
)

MEASURED = {
    "size": 96,
    "batch": 512,
    "dtype": "bfloat16",
    "execution": "CUDA graph",
    "parameters_m": 29.4,
    "infer_images_per_second": 12345.6,
    "train_images_per_second": 2345.6,
    "infer_peak_gib": None,
    "train_peak_gib": 7.891,
}
SCORES = {"plain": (90.0, 91.0, 95.0), "other": (80.0, 80.5, 81.0)}


@pytest.fixture
def rows() -> list[dict]:
    return [
        {"label": label, "seed": seed, "top1": top1, **MEASURED}
        for label, scores in SCORES.items()
        for seed, top1 in enumerate(scores)
    ]


def test_summary(rows):
    plain, other = summarise(rows)
    assert (plain.label, plain.scores, plain.mean) == ("plain", SCORES["plain"], 92.0)
    assert other.costs == {name: MEASURED[name] for name, *_ in COSTS}


def test_table(rows):
    facts = environment(torch.device("cpu"))
    lines = study_table([{**row, **facts} for row in rows]).splitlines()
    assert lines[0].split("|")[3:-1] == [
        f" {head} " for head in ("parameters, M", "inference, images/s", "training, images/s", "training, peak GiB")
    ]
    assert lines[2] == "| plain | 92.0 % (90.0 to 95.0) | 29.40 | 12,346 | 2,346 | 7.89 |"
    assert lines[5].startswith("3 seeds a model.") and "512 images of 96 x 96 pixels at once, bfloat16" in lines[5]
    assert facts["commit"] in lines[5] and lines[-1] == f"    {facts['command']}"


def test_table_before_anything_is_measured(rows):
    facts = environment(torch.device("cpu"))
    lines = study_table([{**row, **dict.fromkeys(MEASURED), **facts} for row in rows]).splitlines()
    assert lines[2] == "| plain | 92.0 % (90.0 to 95.0) |"
    assert lines[5].startswith("3 seeds a model. ") and "Throughput" not in lines[5]


def test_seeds_that_failed_are_not_counted(rows):
    facts = environment(torch.device("cpu"))
    rows = [{**row, **facts} for row in rows]
    assert study_table(rows[:-1]).splitlines()[5].startswith("2 to 3 seeds a model.")
    assert study_table(rows[:1]).splitlines()[4].startswith("1 seed a model.")


def test_table_from_the_file_is_the_same(rows, tmp_path):
    facts = environment(torch.device("cpu"))
    write_csv(tmp_path / "study.csv", rows, facts)
    assert study_table(read_rows(tmp_path / "study.csv")) == study_table([{**row, **facts} for row in rows])


def test_orders_table():
    row = {"case": "small", "order": "hilbert", "batch": 2, "tokens": 20, "directions": 4, "channels": 16, "state": 1}
    row |= {"backend": "native", "dtype": "float32", "forward_ms": 0.51234, "forward_vs_raster": 1.0123}
    row |= {"forward_backward_ms": "15", "forward_backward_vs_raster": 0.98}
    lines = orders_table([{**row, **environment(torch.device("cpu"))}]).splitlines()
    assert lines[2] == "| hilbert | 4 x 20 | 0.512 | 1.01 | 15 | 0.98 |"
    assert lines[4].startswith("`small` (2 images, 16 channels, state 1), float32, native. ")


def test_kernels_table():
    row = {"case": "small", "batch": 2, "tokens": 20, "directions": 4, "channels": 16, "state": 1, "backend": "triton"}
    row |= {"dtype": "bfloat16", "forward_ms": "0.5", "forward_backward_ms": 2.0, "share_of_floor": 0.25, "peak_gib": 1}
    rows = [{**row, "case": case, **environment(torch.device("cpu"))} for case in ("small", "forward only", "alone")]
    official = [
        {"case": "small", "forward_ms": "2.0", "backward_ms": "5.0"},
        {"case": "forward only", "forward_ms": "1.0", "backward_ms": ""},
    ]
    lines = kernels_table(rows, official).splitlines()
    assert lines[2] == "| small | 2 | 4 x 20 | 16 | 1 | 0.5 | 4.0 | 2 | 3.5 | 0.25 | 1.00 |"
    assert lines[3] == "| forward only | 2 | 4 x 20 | 16 | 1 | 0.5 | 2.0 | 2 |  | 0.25 | 1.00 |"
    assert lines[4] == "| alone | 2 | 4 x 20 | 16 | 1 | 0.5 |  | 2 |  | 0.25 | 1.00 |"
    assert lines[6].startswith("bfloat16, triton. ")
    assert kernels_table(rows).splitlines()[2] == "| small | 2 | 4 x 20 | 16 | 1 | 0.5 | 2 | 0.25 | 1.00 |"


def test_operators_table():
    row = {"case": "small", "batch": 2, "tokens": 20, "directions": 1, "channels": 16, "state": 4, "dtype": "bfloat16"}
    row |= environment(torch.device("cpu"))
    ours = {**row, "backend": "triton", "forward_ms": "0.5", "forward_backward_ms": 2.0, "tree_ms": ""}
    attention = {**row, "backend": "attention", "forward_ms": 0.75, "forward_backward_ms": "1.5"}
    lines = operators_table([ours, attention, {**ours, "case": "tree", "tree_ms": "0.125"}]).splitlines()
    assert lines[2] == "| small | triton | 2 | 1 x 20 | 16 | 4 | 0.5 |  | 1.50 | 2 | 0.75 | 3.0 |"
    assert lines[3] == "| tree | triton | 2 | 1 x 20 | 16 | 4 | 0.5 | 0.12 |  | 2 |  | 3.0 |"
    assert not lines[4] and lines[5].startswith("bfloat16. ")


def test_throughput_table():
    row = {"model": "vim_tiny", "size": 224, "batch": 128, "mode": "train", "execution": "eager"}
    row |= {"images_per_second": 311.2, "peak_gib": 5.36, "dtype": "bfloat16", **environment(torch.device("cpu"))}
    graph = {**row, "execution": "CUDA graph", "images_per_second": "3011.2", "peak_gib": "5.4"}
    lines = throughput_table([row, {**row, "batch": 1}, graph]).splitlines()
    assert lines[0] == "| model | size | batch | mode | eager | CUDA graph | peak GiB, eager |"
    assert lines[2] == "| vim_tiny | 224 | 128 | train | 311 | 3,011 | 5.36 |"
    assert lines[3] == "| vim_tiny | 224 | 1 | train | 311 |  | 5.36 |"
    assert lines[5].startswith("Images per second, bfloat16. ")
    assert throughput_table([{**row, "peak_gib": ""}]).splitlines()[2] == "| vim_tiny | 224 | 128 | train | 311 |"


def test_heads_table():
    row = {
        "config": "mask_rcnn",
        "part": "whole",
        "size": "800x1280",
        "batch": 1,
        "dtype": "bfloat16",
        "gflops": "271.1",
    }
    row |= {"parameters_m": 49.75, "ms": 52.02, "peak_gib": 0.567, **environment(torch.device("cpu"))}
    lines = heads_table([{**row, "published_gflops": "271"}, row]).splitlines()
    assert lines[2] == "| mask_rcnn | whole | 800x1280 | 49.8 | 271 | 271 | 52 | 0.57 |"
    assert lines[3] == "| mask_rcnn | whole | 800x1280 | 49.8 | 271 |  | 52 | 0.57 |"
