"""The only place that imports mmengine (and, for detection and segmentation, mmdet and mmseg).

A config names this package in ``custom_imports``; importing it registers everything here with mmengine.
"""

import os

# yapf, which mmengine imports, fails at import where no home folder is known (HOME unset, a user without an account,
# as in containers). This one does not exist: what would be written there is not.
if not os.path.isabs(os.path.expanduser("~")):
    os.environ["HOME"] = "/nonexistent"

try:
    import mmengine  # noqa: F401
except ImportError as error:
    raise ImportError("training needs mmengine: pip install 'vssm[train]'") from error

from vssm.mm import mmcv_ops

# Before anything imports mmdet or mmseg, which import mmcv's operators.
mmcv_ops.install()

from vssm.mm import (  # noqa: E402
    backbone,
    checkpoint,
    classifier,
    datasets,
    hooks,
    metrics,
    optim,
    pyramid,
    runner,
    shapes_datasets,
)

__all__ = [
    "backbone",
    "checkpoint",
    "classifier",
    "datasets",
    "hooks",
    "metrics",
    "mmcv_ops",
    "optim",
    "pyramid",
    "runner",
    "shapes_datasets",
]
