"""Settings that must precede the import of torch; imported first by every tool."""

import importlib.util
import os
import sys
import warnings
from pathlib import Path

# OpenMP threads spin while they wait, which slows processes that share cores (two trainings, or one and its data
# workers) several times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# albumentations checks for a newer version over the network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# From the age of the mm packages; users can do nothing about them.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
warnings.filterwarnings("ignore", module=r"mm(cv|det|engine|seg)\b")

# For a checkout that is not installed. An installed vssm comes first. PYTHONPATH=. alone would not find the kernels.
if importlib.util.find_spec("vssm_kernels") is None:
    root = Path(__file__).resolve().parents[1]
    sys.path[1:1] = [str(root), str(root / "kernels")]
