"""Tries our models in other people's programs and writes what came of it: python tests/clients.py [CLIENT ...].

Every check of client_checks.py runs for each class of models. The rows stand in docs/studies/clients.csv, from which
`make cards` writes the table in docs/clients.md. The test run tries the quick checks of the clients that are installed,
with two models.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import logging
import sys
import time
import traceback
import warnings
from typing import Any

import client_scripts  # noqa: F401  adds its checks
from client_checks import CLIENTS, ROOT, Client, Kind
from families import CLASSES

RESULTS = ROOT / "docs/studies/clients.csv"


def tried(each: Client, kinds: list[Kind]) -> dict[str, Any]:
    """A row: how many models a check ran for, and what came of it."""
    start, works, refused, failed = time.perf_counter(), [], {}, {}
    for kind in kinds:
        try:
            sentence = each.check(kind)
        except Exception as error:
            traceback.print_exc()
            failed[kind[0]] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        else:
            if sentence is None:
                works.append(kind[0])
            else:
                refused[kind[0]] = sentence
    told = [f"works ({len(works)})"] if works else []
    told += [f"refused ({len(refused)}): {next(iter(refused.values()))}"] if refused else []
    told += [f"FAILS ({len(failed)}), {name}: {reason}" for name, reason in list(failed.items())[:1]]
    return {
        "client": each.name,
        "version": each.version,
        "what": each.what,
        "result": "; ".join(told),
        "seconds": round(time.perf_counter() - start),
        "date": datetime.date.today().isoformat(),
        "by": "hand" if each.slow else "test",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clients", nargs="*", help="names, or parts of what is tried (default: all that are installed)")
    parser.add_argument("--model", action="append", help="may be repeated (default: one of each class)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    kinds = [kind for kind in CLASSES if options.model is None or kind[0] in options.model]
    rows = {}
    if RESULTS.exists():
        with RESULTS.open(newline="") as file:
            rows = {(row["client"], row["what"]): row for row in csv.DictReader(file)}
    for each in CLIENTS:
        named = [name for name in options.clients if name == each.name or name in each.what]
        if (options.clients and not named) or not each.installed:
            continue
        row = rows[each.name, each.what] = tried(each, kinds)
        print(json.dumps(row), flush=True)
        places = [(known.name, known.what) for known in CLIENTS]
        kept = sorted((row for place, row in rows.items() if place in places),
                      key=lambda row: places.index((row["client"], row["what"])))  # fmt: skip
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
    return any("FAILS" in row["result"] for row in rows.values())


if __name__ == "__main__":
    sys.exit(main())
