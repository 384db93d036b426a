"""The operations that models are made of: the kernels' public functions."""

from vssm_kernels import (
    CAST,
    RATES,
    Form,
    Layout,
    ScanTable,
    causal_conv1d,
    directed_linear,
    gelu_again,
    grid_tree,
    noncausal_ssd,
    read_parameters,
    selective_scan,
    side_by_side,
    ssd,
    standard_operations,
    sum_gate,
    sum_gate_again,
    sum_norm,
    tree_scan,
    wavefront_scan,
)
from vssm_kernels.dispatch import PLAIN_TENSORS, runs_eagerly
from vssm_kernels.op import without_autocast
from vssm_kernels.orders import kept_for_graphs

__all__ = [
    "CAST",
    "PLAIN_TENSORS",
    "RATES",
    "Form",
    "Layout",
    "ScanTable",
    "causal_conv1d",
    "directed_linear",
    "gelu_again",
    "grid_tree",
    "kept_for_graphs",
    "noncausal_ssd",
    "read_parameters",
    "runs_eagerly",
    "selective_scan",
    "side_by_side",
    "ssd",
    "standard_operations",
    "sum_gate",
    "sum_gate_again",
    "sum_norm",
    "tree_scan",
    "wavefront_scan",
    "without_autocast",
]
