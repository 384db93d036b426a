"""Training on mmengine, mmdet and mmseg: the only package that imports them.

Folders, each of which imports only from those after it: ``tasks`` (what is trained), ``runtime`` (how), ``compat``
(what other packages lack). A config names this package in ``custom_imports``; importing it registers everything with
mmengine.
"""

import os

from vssm.errors import MissingPackageError

# yapf, which mmengine imports, fails at import where no home folder is known (HOME unset, a user without an account,
# as in containers). This one does not exist: what would be written there is not.
if not os.path.isabs(os.path.expanduser("~")):
    os.environ["HOME"] = "/nonexistent"

try:
    import mmengine  # noqa: F401
except ImportError as error:
    raise MissingPackageError(
        "training, detection and segmentation need mmengine: pip install 'vssm[train]', or 'vssm[train,mm]' with heads"
    ) from error

from vssm.mm.compat import mmcv_ops

# Before anything imports mmdet or mmseg, which import mmcv's operators.
mmcv_ops.install()

# Each registers what configs name.
from vssm.mm.runtime import checkpoint, hooks, loops, mesa, metrics, optim, seeding, signals  # noqa: E402, F401
from vssm.mm.tasks import adapter, backbone, classifier, datasets, heads, pyramid, runner, shapes_datasets  # noqa: E402, F401
