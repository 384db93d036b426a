"""One file per family; importing this package registers every model with timm."""

from vssm.models._checkpoint import CheckpointError, load_checkpoint, read_checkpoint
from vssm.models.efficientvmamba import EfficientVMamba
from vssm.models.msvmamba import MSVMamba
from vssm.models.vim import Vim
from vssm.models.vmamba import VMamba

__all__ = [
    "CheckpointError",
    "EfficientVMamba",
    "MSVMamba",
    "VMamba",
    "Vim",
    "load_checkpoint",
    "read_checkpoint",
]
