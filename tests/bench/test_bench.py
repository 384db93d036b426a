"""The benchmark checks before it times, and writes results with the conditions of measurement."""

import csv
from itertools import product

import pytest
import torch

from vssm.bench import (
    KERNEL_CASES,
    Ceilings,
    DualityCase,
    Execution,
    KernelCase,
    MapCase,
    TreeCase,
    benchmark_duality,
    benchmark_kernel,
    benchmark_map,
    benchmark_model,
    benchmark_orders,
    benchmark_tree,
    environment,
    median_time,
    print_table,
    report,
    write_csv,
    write_plot,
)
from vssm.bench.kernels import check
from vssm.scan import bidirectional, cross
from vssm_kernels import Backend
from vssm_kernels.selective_scan import OP, reference
from vssm_kernels.tree_scan import OP as TREE_OP
from vssm_kernels.tree_scan import reference as tree_reference

CPU = torch.device("cpu")
CEILINGS = Ceilings(1e10, None)
SMALL = KernelCase("small", 2, 4, 5, 16, 2, cross)


def test_functions_are_called_in_turn():
    calls = []
    seconds = median_time([lambda: calls.append(0), lambda: calls.append(1)], CPU, seconds=0.001)
    assert seconds > 0 and set(calls[::2]) == {0} and set(calls[1::2]) == {1}


def test_floor_is_the_larger_bound():
    ceilings = Ceilings(bytes_per_second=10.0, exponentials_per_second=2.0)
    assert ceilings.floor(bytes_moved=100, exponentials=2) == 10
    assert ceilings.floor(bytes_moved=1, exponentials=8) == 4
    assert Ceilings.measure(CPU).bytes_per_second > 1e8


def test_cases_are_the_shapes_of_the_models():
    vim = KERNEL_CASES["vim_tiny"].table()
    assert vim.shape == (2, 197) and (vim[0, 98], vim[1, 98]) == (98, 98)
    assert KERNEL_CASES["vim_tiny_plus"].table().shape == (2, 730)
    assert KERNEL_CASES["vmamba_s1_stage4"].table().shape == (4, 49)
    assert KERNEL_CASES["vmamba_s1_stage4"].channels == 768


def test_a_wavefront_is_checked_and_timed():
    case = KernelCase("small", 1, 4, 5, 16, 2, bidirectional, wavefront=True)
    (row,) = benchmark_kernel(case, CPU, torch.float32, CEILINGS, ["native"])
    assert (row["tokens"], row["directions"]) == (20, 2) and row["forward_backward_ms"] > row["forward_ms"] > 0


def test_kernel_rows():
    rows = benchmark_kernel(SMALL, CPU, torch.float32, CEILINGS, ["native", "grouped"])
    assert [row["backend"] for row in rows] == ["native", "grouped"]
    for row in rows:
        assert row["forward_backward_ms"] > row["forward_ms"] > 0
        assert (row["tokens"], row["directions"], row["peak_gib"]) == (20, 4, None)


def test_tree_rows(monkeypatch):
    case = TreeCase("small", 2, 4, 5, 16)
    (row,) = benchmark_tree(case, CPU, torch.float32, CEILINGS, ["native"])
    assert row["forward_backward_ms"] > row["forward_ms"] > row["tree_ms"] > 0
    assert (row["tokens"], row["channels"], row["state"]) == (20, 16, 1)
    right = tree_reference.BACKEND

    def wrong(args, save):
        return right.forward(args, save)[0] * 1.01, None

    bad = Backend("wrong", wrong, right.backward, lambda args: None)
    monkeypatch.setattr(TREE_OP, "backends", [bad, right])
    with pytest.raises(AssertionError, match=r"small, wrong: output is off by .*; not timed"):
        benchmark_tree(case, CPU, torch.float32, CEILINGS, ["wrong"])


@pytest.mark.parametrize("groups, backend", [(2, "bags"), (0, "convolutions")])
def test_map_rows(groups, backend):
    (row,) = benchmark_map(MapCase("small", 2, 4, 5, 6, groups), CPU, torch.float32, CEILINGS, [backend])
    assert row["forward_backward_ms"] > row["forward_ms"] > 0
    assert (row["backend"], row["tokens"], row["channels"]) == (backend, 20, 6)


def test_orders_stand_beside_as_many_raster_directions():
    rows = benchmark_orders(SMALL, ["hilbert", "raster", "windows(2)"], CPU, torch.float32, CEILINGS, ["native"])
    assert [row["order"] for row in rows] == [
        *("raster x 4", "hilbert"),
        *("raster x 1", "raster"),
        *("raster x 2", "windows(2)"),
    ]
    assert [row["directions"] for row in rows] == [4, 4, 1, 1, 2, 2]
    for plain, row in zip(rows[::2], rows[1::2], strict=True):
        assert (plain["forward_vs_raster"], plain["forward_backward_vs_raster"]) == (1, 1)
        assert row["forward_vs_raster"] == row["forward_ms"] / plain["forward_ms"]
        assert row["forward_backward_vs_raster"] == row["forward_backward_ms"] / plain["forward_backward_ms"]


@pytest.mark.parametrize("directions", [1, 2])
def test_duality_stands_beside_attention(directions):
    case = DualityCase("small", 1, 70, directions, heads=2, channels=8, state=4)
    rows = benchmark_duality(case, CPU, torch.float32, CEILINGS, ["chunked"])
    assert [row["backend"] for row in rows] == ["chunked", "attention"]
    for row in rows:
        assert row["forward_backward_ms"] > row["forward_ms"] > 0
        assert (row["tokens"], row["directions"], row["channels"]) == (70, directions, 16)


def test_a_wrong_backend_is_not_timed(monkeypatch):
    def wrong(args, save):
        return reference.scan(args)[0] * 1.01, None

    bad = Backend("wrong", wrong, reference.scan_backward, lambda args: None)
    monkeypatch.setattr(OP, "backends", [bad, *OP.backends])
    with pytest.raises(AssertionError, match=r"small, wrong: output is off by .*; not timed"):
        check(SMALL, "wrong", CPU, torch.float32)


@pytest.mark.parametrize("training", [False, True])
def test_model_row(training):
    row = benchmark_model("test_vit", 160, 2, CPU, torch.float32, execution=Execution.EAGER, training=training)
    assert row["images_per_second"] == pytest.approx(2 / (row["ms"] / 1e3))
    assert row["mode"] == ("train" if training else "infer") and row["parameters_m"] > 0


def test_model_row_of_a_model_with_arguments():
    rows = [
        benchmark_model(
            "vmamba_tiny",
            32,
            1,
            CPU,
            torch.float32,
            execution=Execution.EAGER,
            training=False,
            arguments=arguments,
            seconds=0.01,
        )
        for arguments in ({"dims": (16, 32), "depths": (1, 1), "scan_order": order} for order in ("raster", "cross"))
    ]
    assert rows[0]["parameters_m"] < rows[1]["parameters_m"] < 0.1


def test_reports(tmp_path, capsys):
    rows = [{"model": "a", "size": size, "ms": 1.0 * size} for size in (1, 2)] + [{"model": "b", "size": 1, "ms": 5.0}]
    print_table(rows)
    assert capsys.readouterr().out.splitlines()[1].split() == ["a", "1", "1"]
    facts = environment(CPU)
    assert {"device", "torch", "triton", "commit", "command"} <= set(facts) and all(facts.values())
    write_csv(tmp_path / "new" / "rows.csv", rows, facts)
    with (tmp_path / "new" / "rows.csv").open() as file:
        read = list(csv.DictReader(file))
    assert read[0]["ms"] == "1.0" and read[2]["commit"] == facts["commit"]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["rows.csv"]
    write_plot(tmp_path / "plot.png", rows, "size", "ms", "model")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.gpu
def test_on_a_gpu():
    device = torch.device("cuda")
    ceilings = Ceilings.measure(device)
    assert ceilings.exponentials_per_second > 1e11
    (row, *_) = benchmark_kernel(SMALL, device, torch.bfloat16, ceilings, ["triton"])
    assert row["peak_gib"] > 0 and 0 < row["share_of_floor"] < 1
    assert (
        benchmark_model("vim_tiny", 224, 2, device, torch.bfloat16, execution=Execution.EAGER, training=True)[
            "peak_gib"
        ]
        > 0
    )
    for execution, training in product((Execution.GRAPH, Execution.COMPILED_GRAPH), (False, True)):
        how = {"execution": execution, "training": training, "arguments": {"depth": 2}}
        assert benchmark_model("vim_tiny", 224, 2, device, torch.bfloat16, **how)["ms"] > 0


def test_labels_of_near_points_lie_apart(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    boxes = []

    def watched(labels, figure, axes):
        spread(labels, figure, axes)
        boxes.extend(label.get_window_extent() for label in labels)
        assert all(axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 for box in boxes)

    spread = report._spread
    monkeypatch.setattr(report, "_spread", watched)
    points = [("near", f"a model of a long name {number}", 100 + number, 80 + number / 50) for number in range(4)]
    points.append(("far", "a model of a long name", 1000, 81))
    report.write_scatter(tmp_path / "scatter.png", points, "images/s", "top-1", "a comment")
    assert b"a comment" in (tmp_path / "scatter.png").read_bytes()
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
