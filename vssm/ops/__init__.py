"""The operations that models are made of: the kernels' public functions and plain-torch ones."""

from vssm_kernels import selective_scan

__all__ = ["selective_scan"]
