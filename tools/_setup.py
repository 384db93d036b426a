"""What must stand before torch is imported: imported first by every tool."""

import importlib.util
import os
import sys
import warnings
from pathlib import Path

# OpenMP threads that wait by spinning cost several times the work where processes share cores: two trainings, or one
# and its data workers.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# albumentations asks the network for a newer version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# Of the mm packages' age, not of the user's doing; what matters there is logged.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
warnings.filterwarnings("ignore", module=r"mm(cv|det|engine|seg)\b")

# A checkout that is not installed; an installed vssm comes first. With PYTHONPATH=. vssm is found, but not its kernels.
if importlib.util.find_spec("vssm_kernels") is None:
    root = Path(__file__).resolve().parents[1]
    sys.path[1:1] = [str(root), str(root / "kernels")]
