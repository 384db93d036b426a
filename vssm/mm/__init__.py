"""The only place that imports mmengine (and, for detection and segmentation, mmdet and mmseg).

A config names this package in ``custom_imports``; importing it registers everything here with mmengine.
"""

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
