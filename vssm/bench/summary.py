"""Measurements as Markdown tables for documents: studies, kernels, scan orders, throughput, detectors, segmentors."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

# Column, its heading in a document, and its number format.
COSTS = (
    ("parameters_m", "parameters, M", "{:.2f}"),
    ("infer_images_per_second", "inference, images/s", "{:,.0f}"),
    ("train_images_per_second", "training, images/s", "{:,.0f}"),
    ("infer_peak_gib", "inference, peak GiB", "{:.2f}"),
    ("train_peak_gib", "training, peak GiB", "{:.2f}"),
)


@dataclass(frozen=True)
class Summary:
    """One model of a study.

    Args:
        label: its name.
        scores: top-1 accuracy of each seed, in percent.
        costs: the columns of `COSTS`; None for those that could not be measured.
    """

    label: str
    scores: tuple[float, ...]
    costs: dict[str, float | None]

    @property
    def mean(self) -> float:
        return statistics.mean(self.scores)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV that `write_csv` wrote."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def summarise(rows: Iterable[Mapping[str, object]]) -> list[Summary]:
    """One summary per label, in the order of the rows.

    >>> costs = {name: 1 for name, _, _ in COSTS}
    >>> rows = [{"label": "a", "seed": seed, "top1": 90 + seed, **costs} for seed in range(3)]
    >>> summarise(rows)[0].mean
    91.0
    """
    by_label: dict[str, list[Mapping[str, object]]] = {}
    for row in rows:
        by_label.setdefault(str(row["label"]), []).append(row)
    return [
        Summary(
            label,
            tuple(float(row["top1"]) for row in group),
            {name: None if group[0][name] in (None, "") else float(group[0][name]) for name, _, _ in COSTS},
        )
        for label, group in by_label.items()
    ]


def study_table(rows: list[Mapping[str, object]]) -> str:
    """A Markdown table of the models, and below it the conditions of measurement.

    The spread over seeds is given as lowest and highest: three numbers are too few for a deviation.
    """
    models = summarise(rows)
    columns = [column for column in COSTS if any(model.costs[column[0]] is not None for model in models)]
    lines = [["model", "top-1, mean (lowest to highest)", *(head for _, head, _ in columns)]]
    for model in models:
        spread = f"{model.mean:.1f} % ({min(model.scores):.1f} to {max(model.scores):.1f})"
        lines.append([model.label, spread, *(_text(model.costs[name], form) for name, _, form in columns)])
    least, most = (choose(len(model.scores) for model in models) for choose in (min, max))
    of_each = str(most) if least == most else f"{least} to {most}"  # a training may have failed
    seeds = f"{of_each} seed{'' if most == 1 else 's'} a model."
    measured = next((row for row in rows if row["execution"]), None)
    if measured is not None:
        seeds += (
            f" Throughput and peak memory: each model alone ({measured['execution']}), {measured['batch']} images of "
            f"{measured['size']} x {measured['size']} pixels at once, {measured['dtype']}."
        )
    return f"{_table(lines)}\n{seeds} {conditions(rows[0])}"


def orders_table(rows: list[Mapping[str, object]]) -> str:
    """A Markdown table of the rows of `benchmark_orders`, and below it the conditions of measurement."""
    lines = [["scan order", "directions x steps", "forward, ms", "ratio", "with backward, ms", "ratio"]]
    for row in rows:
        times = [
            form.format(float(row[name]))
            for what in ("forward", "forward_backward")
            for name, form in ((f"{what}_ms", "{:.3g}"), (f"{what}_vs_raster", "{:.2f}"))
        ]
        lines.append([str(row["order"]), f"{row['directions']} x {row['tokens']}", *times])
    cases = dict.fromkeys(
        f"`{row['case']}` ({row['batch']} images, {row['channels']} channels, state {row['state']}), {row['dtype']}, "
        f"{row['backend']}"
        for row in rows
    )
    return f"{_table(lines)}\n{'; '.join(cases)}. {conditions(rows[0])}"


def kernels_table(rows: list[Mapping[str, object]], official: Iterable[Mapping[str, str]] = ()) -> str:
    """A Markdown table of the rows of `benchmark_kernel`, and below it the conditions of measurement.

    Args:
        rows: of one backend.
        official: `case`, `forward_ms` and `backward_ms` of the official kernels, empty where one was not measured.
    """
    peers = {peer["case"]: peer for peer in official}
    ratio = ["official / ours"] if peers else []
    head = ["case", "batch", "directions x steps", "channels", "state", "forward, ms", *ratio]
    lines = [[*head, "with backward, ms", *ratio, "floor / forward", "peak GiB"]]
    for row in rows:
        forward, both = float(row["forward_ms"]), float(row["forward_backward_ms"])
        peer = peers.get(str(row["case"]), {})
        theirs = float(peer["forward_ms"]) if peer else None
        theirs_both = theirs + float(peer["backward_ms"]) if peer.get("backward_ms") else None
        times = (forward, theirs), (both, theirs_both)
        cells = [[f"{ours:.3g}", _text(other and other / ours, "{:.1f}")][: 1 + len(ratio)] for ours, other in times]
        lines.append(
            [
                *(str(row["case"]), str(row["batch"]), f"{row['directions']} x {row['tokens']}"),
                *(str(row["channels"]), str(row["state"])),
                *(cell for pair in cells for cell in pair),
                *(f"{float(row['share_of_floor']):.2f}", f"{float(row['peak_gib']):.2f}"),
            ]
        )
    return f"{_table(lines)}\n{rows[0]['dtype']}, {rows[0]['backend']}. {conditions(rows[0])}"


def operators_table(rows: list[Mapping[str, object]]) -> str:
    """A Markdown table of rows of kernels of any kind, and the conditions below: beside attention where it was timed,
    with the time of the tree in that of a forward, and the backward alone as a multiple of the forward."""
    attention = {str(row["case"]): row for row in rows if row["backend"] == "attention"}
    head = ["case", "backend", "batch", "directions x tokens", "channels", "state", "forward, ms", "of it the tree"]
    lines = [[*head, "attention / ours", "with backward, ms", "attention / ours", "backward / forward"]]
    for row in rows:
        if row["backend"] == "attention":
            continue
        peer, tree = attention.get(str(row["case"])), row.get("tree_ms") or None
        forward, both = float(row["forward_ms"]), float(row["forward_backward_ms"])
        ratio, ratio_both = (
            None if peer is None else float(peer[what]) / ours
            for what, ours in (("forward_ms", forward), ("forward_backward_ms", both))
        )
        cells = [str(row["case"]), str(row["backend"]), str(row["batch"]), f"{row['directions']} x {row['tokens']}"]
        cells += [str(row["channels"]), str(row["state"]), f"{forward:.3g}", _text(tree and float(tree), "{:.2g}")]
        cells += [_text(ratio, "{:.2f}"), f"{both:.3g}", _text(ratio_both, "{:.2f}"), f"{both / forward - 1:.1f}"]
        lines.append(cells)
    return f"{_table(lines)}\n{rows[0]['dtype']}. {conditions(rows[0])}"


def throughput_table(rows: list[Mapping[str, object]]) -> str:
    """A Markdown table of the rows of `benchmark_model`: one line for all executions of a model in one mode.

    The conditions of measurement stand below it. Memory and GPU kernels are those of the first execution.
    """
    executions = list(dict.fromkeys(str(row["execution"]) for row in rows))
    named = ("model", "size", "batch", "mode")
    runs: dict[tuple[str, ...], dict[str, Mapping[str, object]]] = {}
    for row in rows:
        runs.setdefault(tuple(str(row[name]) for name in named), {})[str(row["execution"])] = row
    with_memory = any(row["peak_gib"] not in (None, "") for row in rows)  # there is none on a CPU
    with_kernels = any(row.get("kernels") not in (None, "") for row in rows)  # older measurements did not count them
    lines = [
        [
            *named,
            *executions,
            *([f"peak GiB, {executions[0]}"] if with_memory else []),
            *(["GPU kernels", "of a block"] if with_kernels else []),
        ]
    ]
    for run, measured in runs.items():
        speeds = [_number(measured, execution, "images_per_second", "{:,.0f}") for execution in executions]
        peak = [_number(measured, executions[0], "peak_gib", "{:.2f}")] if with_memory else []
        kernels = ("kernels", "kernels_per_block") if with_kernels else ()
        counts = [_number(measured, executions[0], name, "{:,.0f}") for name in kernels]
        lines.append([*run, *speeds, *peak, *counts])
    return f"{_table(lines)}\nImages per second, {rows[0]['dtype']}. {conditions(rows[0])}"


def _number(measured: Mapping[str, Mapping[str, object]], execution: str, column: str, form: str) -> str:
    """A cell; empty where nothing was measured."""
    value = measured.get(execution, {}).get(column)
    return _text(None if value in (None, "") else float(str(value)), form)


def heads_table(rows: list[Mapping[str, object]]) -> str:
    """A Markdown table of detectors, segmentors and their backbones, and below it the conditions of measurement."""
    lines = [["config", "part", "pixels", "parameters, M", "GFLOPs, counted", "GFLOPs, published", "ms", "peak GiB"]]
    for row in rows:
        counted = [f"{float(row['parameters_m']):.1f}", f"{float(row['gflops']):.0f}"]
        measured = [f"{float(row['ms']):.3g}", f"{float(row['peak_gib']):.2f}"]
        stated = str(row.get("published_gflops") or "")
        lines.append([str(row["config"]), str(row["part"]), str(row["size"]), *counted, stated, *measured])
    batch = rows[0]["batch"]
    return f"{_table(lines)}\nBatch {batch}, eager, {rows[0]['dtype']}. {conditions(rows[0])}"


def _table(lines: list[list[str]]) -> str:
    """Markdown with the first column aligned left and the others right."""
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "".join("| " + " | ".join(line) + " |\n" for line in (lines[0], rule, *lines[1:]))


def conditions(row: Mapping[str, object]) -> str:
    """Device, versions, commit and command."""
    versions = ", ".join(f"{package} {row[package]}" for package in ("torch", "triton", "timm"))
    return f"{row['device']}, {versions}, commit {row['commit']}:\n\n    {row['command']}\n"


def _text(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
