"""Tables of what was tried in other people's programs, and of exported files."""

from __future__ import annotations

from collections.abc import Mapping

from vssm.bench.summary import conditions

Row = Mapping[str, str]


def clients(rows: list[Row]) -> str:
    """The rows of tests/clients.py."""
    lines = ["| client | version | what | result | run |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        run = f"by hand, {row['date']}" if row["by"] == "hand" else f"tests; all classes {row['date']}"
        lines.append(f"| {row['client']} | {row['version']} | {row['what']} | {row['result']} | {run} |")
    return "\n".join(lines) + "\n"


def exports(rows: list[Row]) -> str:
    """The rows of `tools/benchmark.py export`: a line for each model and format."""
    lines = [
        "| model | format | eager, ms | file, ms | file / eager | difference | commit |",
        "| --- | --- " + "| ---: " * 4 + "| --- |",
    ]
    for row in rows:
        eager, own = float(row["eager_ms"]), float(row["ms"])
        numbers = f"{eager:.0f} | {own:.0f} | {own / eager:.2f} | {float(row['difference']):.0e}"
        lines.append(f"| `{row['model']}` | {row['format']} | {numbers} | {row['commit']} |")
    return "\n".join(lines) + f"\n\nOne image of 224 pixels, float32. {conditions(rows[0])}"
