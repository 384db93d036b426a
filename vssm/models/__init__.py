"""One file per family; importing this package registers every model with timm."""

from vssm.models._base import Backbone, Pyramid
from vssm.models._checkpoint import (
    CheckpointError,
    check_fits,
    load_checkpoint,
    read_checkpoint,
    read_file,
    weights_in,
)
from vssm.models._plain import Plain
from vssm.models.efficientvmamba import EfficientVMamba
from vssm.models.msvmamba import MSVMamba
from vssm.models.vim import Vim
from vssm.models.vmamba import VMamba

__all__ = [
    "Backbone",
    "CheckpointError",
    "EfficientVMamba",
    "MSVMamba",
    "Plain",
    "Pyramid",
    "VMamba",
    "Vim",
    "check_fits",
    "load_checkpoint",
    "read_checkpoint",
    "read_file",
    "weights_in",
]
