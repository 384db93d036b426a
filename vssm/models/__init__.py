"""One file per family; importing this package registers every model with timm."""

from vssm.models._checkpoint import CheckpointError, load_checkpoint, read_checkpoint
from vssm.models.vim import Vim
from vssm.models.vmamba import VMamba

__all__ = ["CheckpointError", "VMamba", "Vim", "load_checkpoint", "read_checkpoint"]
