"""Results as a table, as a CSV file with the conditions of measurement, and as a plot."""

from __future__ import annotations

import csv
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch

import vssm
from vssm.files import written_whole

Row = dict[str, object]


def environment(device: torch.device) -> dict[str, str]:
    """Device, versions, commit and command, which belong to every measured number."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return {
        "device": name,
        "vssm": vssm.__version__,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "timm": timm.__version__,
        "commit": _commit(),
        "command": shlex.join(["python", *sys.argv]),
    }


def _version(package: str) -> str:
    module = sys.modules.get(package)
    return module.__version__ if module else "not imported"


def _commit() -> str:
    """The commit of the checkout that runs, with "+" for uncommitted changes, or "unknown" for an installed package."""
    root = Path(vssm.__file__).resolve().parents[1]
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip()


def print_table(rows: list[Row], out: object = None) -> None:
    """The rows with aligned columns; numbers to four digits."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_text(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    stream = out or sys.stdout
    for line in cells:
        stream.write("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + "\n")
    stream.flush()


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_csv(path: Path, rows: list[Row], facts: dict[str, str]) -> None:
    """Write the rows, each with the environment's facts, under a temporary name, then rename."""
    columns = [*dict.fromkeys(name for row in rows for name in row), *facts]
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        written_whole(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({**row, **facts} for row in rows)


def write_plot(path: Path, rows: list[Row], x: str, y: str, line: str) -> None:
    """Plot column `y` over column `x` on logarithmic axes, with one line per value of the column `line`.

    Raises:
        ImportError: matplotlib is missing; the message has the install line.
    """
    figure, axes = _axes(7, 4.5)
    for name in dict.fromkeys(row[line] for row in rows):
        points = sorted((row[x], row[y]) for row in rows if row[line] == name)
        axes.plot(*zip(*points, strict=True), marker="o", label=str(name))
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    axes.set_xticks(sorted({row[x] for row in rows}), minor=False)
    axes.set_xticks([], minor=True)
    _plain_numbers(axes)
    _save(figure, axes, path)


def write_scatter(
    path: Path, points: Iterable[tuple[str, str, float, float]], x: str, y: str, comment: str = ""
) -> None:
    """Plot points, each (group, label, x, y), over a logarithmic x axis; a colour for each group, the label beside it.

    The comment stands in the PNG file as text.

    Raises:
        ImportError: matplotlib is missing; the message has the install line.
    """
    groups: dict[str, list[tuple[str, float, float]]] = {}
    for group, *point in points:
        groups.setdefault(group, []).append(tuple(point))
    figure, axes = _axes(10, 7)
    from matplotlib import ticker

    labels = []
    for number, (group, found) in enumerate(groups.items()):
        names, across, up = zip(*found, strict=True)
        # Ten colours, then the same ten with another marker.
        axes.plot(across, up, "os^D"[number // 10], color=f"C{number % 10}", label=group)
        for name, *place in zip(names, across, up, strict=True):
            labels.append(axes.annotate(name, place, xytext=(4, 4), textcoords="offset points", fontsize=7))
    axes.set(xscale="log", xlabel=x, ylabel=y)
    _plain_numbers(axes)
    # Ten and its powers alone would leave a narrow range without numbers, and all of 1 to 9 lie on each other.
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    _spread(labels, figure, axes)
    _save(figure, axes, path, {"Comment": comment})


def _spread(labels: list[Any], figure: Any, axes: Any) -> None:
    """Put each label on that side of its point where it lies on nothing else and inside the axes, if there is one."""
    figure.draw_without_rendering()
    points, taken = [axes.transData.transform(label.xy) for label in labels], []
    for label in labels:
        for right, up in ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1)):
            label.set(ha=("center", "left", "right")[right], va=("center_baseline", "bottom", "top")[up])
            label.set_position((5 * right, 5 * up))
            box = label.get_window_extent()
            inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1
            covered = any(box.padded(2).contains(*point) for point in points)
            if inside and not covered and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def _axes(width: float, height: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("a plot needs matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _plain_numbers(axes: Any) -> None:
    """No powers of ten."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")


def _save(figure: Any, axes: Any, path: Path, texts: dict[str, str] | None = None) -> None:
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata=texts)
