"""Visual state-space models (vision Mamba) as timm backbones on one fused selective-scan core.

>>> import timm, vssm
>>> model = timm.create_model("vim_tiny", num_classes=10)
"""

try:
    # timm imports it; tried here because its own message names neither cause nor remedy.
    import torchvision  # noqa: F401
except RuntimeError as error:
    raise ImportError(
        f"the installed torchvision does not fit the installed torch ({error}); install both from one place, for a "
        f"CPU-only torch: pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu"
    ) from error

from vssm import models

__version__ = "0.1.0"

__all__ = ["__version__", "models"]
