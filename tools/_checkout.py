"""Lets the tools run from a checkout that is not installed; an installed vssm comes first."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("vssm") is None:
    root = Path(__file__).resolve().parents[1]
    sys.path[1:1] = [str(root), str(root / "kernels")]
