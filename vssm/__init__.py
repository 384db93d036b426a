"""Visual state-space models (vision Mamba) as timm backbones on one fused selective-scan core.

>>> import timm, vssm
>>> model = timm.create_model("vim_tiny", num_classes=10)
"""

from vssm import models

__version__ = "0.1.0"

__all__ = ["__version__", "models"]
