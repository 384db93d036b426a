"""The operations that models are made of: the kernels' public functions."""

from vssm_kernels import (
    ScanTable,
    causal_conv1d,
    directed_linear,
    noncausal_ssd,
    selective_scan,
    side_by_side,
    standard_operations,
    sum_gate,
    sum_norm,
)
from vssm_kernels.op import without_autocast

__all__ = [
    "ScanTable",
    "causal_conv1d",
    "directed_linear",
    "noncausal_ssd",
    "selective_scan",
    "side_by_side",
    "standard_operations",
    "sum_gate",
    "sum_norm",
    "without_autocast",
]
