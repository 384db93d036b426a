"""The operations that models are made of: the kernels' public functions."""

from vssm_kernels import causal_conv1d, selective_scan, sum_gate, sum_norm

__all__ = ["causal_conv1d", "selective_scan", "sum_gate", "sum_norm"]
