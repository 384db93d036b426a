"""Write the tables of README.md, the model cards and the guides, or check that they are up to date.

    python tools/model_tables.py           # write them
    python tools/model_tables.py --check   # change nothing; fail and name the files whose tables are out of date

A table stands between two comments, `<!-- table: models vim -->` and `<!-- end of table -->`; its name says which.
Those of models come from model_cards/results.yaml; `study`, `orders`, `kernels`, `throughput`
and `heads` with a NAME from docs/studies/NAME.csv, which tools/compare.py or tools/benchmark.py has written.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "model_cards/*.md", "docs/*.md", "kernels/README.md")
TABLE = re.compile(r"(<!-- table: (?P<kind>\w+)(?: (?P<family>\w+))? -->\n).*?(<!-- end of table -->)", re.DOTALL)


def markdown(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; empty cells for None."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |\n" for line in lines)


def models(results: dict, families: list[str]) -> str:
    """Size, published accuracy and parity of every model."""
    head = ["model", "parameters", "input", "GFLOPs, counted", "GFLOPs, published", "top-1, published"]
    head += ["parity with the official code"]
    rows = []
    for family in families:
        entry = results["families"][family]
        other_names = {model: alias for alias, model in entry.get("aliases", {}).items()}
        for name, model in entry["models"].items():
            title = f"`{name}`" + (f", `{other_names[name]}`" if name in other_names else "")
            published = model["published"]
            parity = "recorded outputs reproduced" if "parity" in model else "same code, no record"
            size = f"{model['parameters'] / 1e6:.2f} M"
            flops = [f"{model['gflops']:.2f}", published.get("flops")]
            rows.append([title, size, model["input"], *flops, published["top1"], parity])
    return markdown(head, rows)


def weights(results: dict, families: list[str]) -> str:
    """Where the published weights are."""
    rows = [
        [f"`{name}`", model["published"]["top1"], model["published"].get("top5"), f"<{model['weights']}>"]
        for family in families
        for name, model in results["families"][family]["models"].items()
    ]
    return markdown(["model", "top-1", "top-5", "weights"], rows)


def downstream(results: dict, families: list[str]) -> str:
    """Detection and segmentation: recipes, sizes, and what is published of them. Links are those of a model card."""
    head = ["backbone", "recipe", "parameters", "GFLOPs, counted", "GFLOPs, published", "score, published", "weights"]
    rows = []
    for family in families:
        for row in results["families"][family]["downstream"]:
            published = row.get("published", {})
            rows.append(
                [
                    f"`{row['model']}`",
                    f"[{row['task']}](../{row['recipe']})",
                    f"{row['parameters'] / 1e6:.1f} M",
                    row["gflops"],
                    published.get("flops"),
                    f"{published['score']} ({row['source']})" if published else "none",
                    f"<{row['weights']}>" if "weights" in row else None,
                ]
            )
    return markdown(head, rows)


def measured(results: dict, families: list[str]) -> str:
    """What was measured with this repository."""
    known = {
        name
        for family in families
        for name in (*results["families"][family]["models"], *results["families"][family].get("aliases", ()))
    }
    rows = [
        [f"`{row['model']}`", row["what"], row["result"], row["device"], row["commit"], f"`{row['command']}`"]
        for row in results["measured"]
        if row["model"] in known
    ]
    if not rows:
        return "Nothing is recorded yet.\n"
    return markdown(["model", "what", "result", "device", "commit", "command"], rows)


def recorded(kind: str, name: str, root: Path) -> str:
    """The table of a CSV in docs/studies, for a document in docs/, and the plot where there is one."""
    file = root / "docs" / "studies" / f"{name}.csv"
    if not file.exists():
        return "Nothing is recorded yet.\n"
    from vssm.bench import summary  # takes seconds, for torch; the other tables do without

    official = file.with_name(f"official_{name}.csv")
    peers = summary.read_rows(official) if official.exists() else []
    tables = {
        "study": summary.study_table,
        "orders": summary.orders_table,
        "kernels": lambda rows: summary.kernels_table(rows, peers),
        "throughput": summary.throughput_table,
        "heads": summary.heads_table,
    }
    shown = {"study": "accuracy and costs of each model", "throughput": "time of an image over its size"}
    plot = f"\n![{shown.get(kind, name)}](studies/{name}.png)\n" if file.with_suffix(".png").exists() else ""
    return tables[kind](summary.read_rows(file)) + plot


KINDS = {function.__name__: function for function in (models, weights, downstream, measured)}
RECORDED = ("study", "orders", "kernels", "throughput", "heads")


def with_tables(text: str, results: dict, root: Path) -> str:
    """`text` with every table written anew. Raises ValueError for a table of an unknown name."""

    def table(found: re.Match) -> str:
        kind, family = found["kind"], found["family"]
        if kind in RECORDED and family:
            return f"{found[1]}\n{recorded(kind, family, root)}\n{found[4]}"
        if kind not in KINDS or (family and family not in results["families"]):
            raise ValueError(f"unknown table {found[1].strip()}; kinds: {', '.join((*KINDS, *RECORDED))}")
        families = [family] if family else list(results["families"])
        return f"{found[1]}\n{KINDS[kind](results, families)}\n{found[4]}"

    return TABLE.sub(table, text)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a table is out of date")
    check = parser.parse_args(arguments).check

    results = yaml.safe_load((root / "model_cards" / "results.yaml").read_text(encoding="utf-8"))
    changed = []
    for document in sorted(path for pattern in DOCUMENTS for path in root.glob(pattern)):
        text = document.read_text(encoding="utf-8")
        new = with_tables(text, results, root)
        if new != text:
            changed.append(document.relative_to(root).as_posix())
            if not check:
                document.write_text(new, encoding="utf-8")
    if changed and check:
        print(f"tables out of date in {', '.join(changed)}; write them with: make cards")
        return 1
    print(f"{'written: ' + ', '.join(changed) if changed else 'all tables are up to date'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
