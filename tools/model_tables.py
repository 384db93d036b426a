"""Write what documents and configs repeat of the families' declarations, results and recipes, or check it.

    python tools/model_tables.py           # write
    python tools/model_tables.py --check   # change nothing; fail and name the files that are out of date

Sources: the declarations in vssm/models/*.py, model_cards/results.yaml, configs/recipes.yaml, and the CSV files in
docs/studies, which tools/compare.py and tools/benchmark.py write.

A table stands between two comments, `<!-- table: card vim -->` and `<!-- end of table -->`; its name says which:
`families`, `zoo`, `measured`, `notice`, `card` with a family, and `study`, `orders`, `kernels`, `throughput`, `heads`,
`clients` and `exports` with the name of a CSV file. Beside tables: the front matter of cards, new cards for families
that have results but no card, the configs of configs/recipes.yaml, and pictures of the families' scan orders.
"""

from __future__ import annotations

import argparse
import re
import sys
from functools import partial
from pathlib import Path

import _setup  # noqa: F401
from _cards import Sources, card, measured, notice, pictures, whole_card
from _clients import clients, exports
from _zoo import PICTURE, draw_zoo, families, is_drawn, runs, zoo

from vssm.bench import summary
from vssm.models import FAMILIES

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "NOTICE", "model_cards/*.md", "docs/*.md", "kernels/README.md")
TABLE = re.compile(r"(<!-- table: (?P<kind>\w+)(?: (?P<name>\w+))? -->\n).*?(<!-- end of table -->)", re.DOTALL)
TABLES = {function.__name__: function for function in (families, zoo, measured, notice)}
# Of a file in docs/studies: the table's function, and what its plot shows.
STUDIES = {
    "study": (summary.study_table, "accuracy and costs of each model"),
    "orders": (summary.orders_table, "costs of scan orders"),
    "kernels": (summary.kernels_table, "times of kernels"),
    "operators": (summary.operators_table, "times of operators"),
    "throughput": (summary.throughput_table, "time of an image over its size"),
    "heads": (summary.heads_table, "costs of detectors and segmentors"),
    "clients": (clients, ""),
    "exports": (exports, ""),
}
WRITTEN = "# Written by `make cards`"


def recorded(kind: str, name: str, root: Path) -> str:
    """The table of a CSV in docs/studies, for a document in docs/, and the plot where there is one."""
    file = root / "docs" / "studies" / f"{name}.csv"
    if not file.exists():
        return "Nothing is recorded yet.\n"
    table, shown = STUDIES[kind]
    official = file.with_name(f"official_{name}.csv")
    peers = [summary.read_rows(official)] if official.exists() else []
    plot = f"\n![{shown}](studies/{name}.png)\n" if file.with_suffix(".png").exists() else ""
    return table(summary.read_rows(file), *peers) + plot


def with_tables(text: str, sources: Sources) -> str:
    """`text` with every table written anew. Raises ValueError for a table of an unknown name."""

    def table(found: re.Match) -> str:
        kind, name = found["kind"], found["name"]
        if kind in STUDIES and name:
            content = recorded(kind, name, sources.root)
        elif kind == "card" and name in sources.results["families"]:
            content = card(sources, FAMILIES[name])
        elif kind in TABLES and not name:
            content = TABLES[kind](sources)
        else:
            kinds = ", ".join((*TABLES, "card FAMILY", *(f"{study} CSV" for study in STUDIES)))
            raise ValueError(f"unknown table {found[1].strip()}; known: {kinds}")
        return f"{found[1]}\n{content}\n{found[4]}"

    return TABLE.sub(table, text)


def written(sources: Sources) -> dict[Path, str | None]:
    """The text of every file that is written in whole or in part; None for one that has to go."""
    root = sources.root
    texts = {path: path.read_text(encoding="utf-8") for pattern in DOCUMENTS for path in root.glob(pattern)}
    texts |= {root / "model_cards" / f"{each.name}.md": whole_card(sources, each) for each in sources.families}
    files: dict[Path, str | None] = {path: with_tables(text, sources) for path, text in texts.items()}
    old = [path for path in root.glob("configs/*/*/*.py") if WRITTEN in path.read_text(encoding="utf-8")]
    configs = {root / recipe.path: recipe.text() for recipe in sources.recipes}
    return files | dict.fromkeys(old) | configs


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail where something is out of date")
    check = parser.parse_args(arguments).check

    sources = Sources.read(root)
    files = written(sources)
    drawings = {path: draw for path, draw in pictures(sources).items() if not path.exists()}
    if runs(root) and not is_drawn(sources, root / PICTURE):
        drawings[root / PICTURE] = partial(draw_zoo, sources)
    changed = [path for path, text in files.items() if text != (path.read_text("utf-8") if path.exists() else None)]
    names = ", ".join(sorted(path.relative_to(root).as_posix() for path in (*changed, *drawings)))
    if check or not names:
        print(f"out of date: {names}; write with: make cards" if names else "everything is up to date")
        return 1 if names else 0
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        if files[path] is None:
            path.unlink()
        else:
            path.write_text(files[path], encoding="utf-8")
    for path, draw in drawings.items():
        draw(path=path)
    print(f"written: {names}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
