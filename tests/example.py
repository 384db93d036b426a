"""Runs the example of a document in a process of its own. Imports nothing that an example has to import itself."""

import contextlib
import os
import traceback
from pathlib import Path


def run(code: str, folder: Path) -> None:
    """In an empty folder; what it prints and how it fails are in the files `printed` and `failed` there."""
    os.chdir(folder)
    try:
        with Path("printed").open("w") as printed, contextlib.redirect_stdout(printed):
            exec(compile(code, "<example>", "exec"), {"__name__": "__main__"})
    except Exception:
        Path("failed").write_text(traceback.format_exc())
