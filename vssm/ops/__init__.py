"""The operations that models are made of: the kernels' public functions and plain-torch ones."""

from vssm.ops.causal_conv import causal_conv1d
from vssm_kernels import selective_scan

__all__ = ["causal_conv1d", "selective_scan"]
