"""Fused kernels for visual state-space models: torch and Triton only, no compiler needed to install.

Letters, as in the literature on state-space models; everything else is spelt out:

====== ================================================= ===============================
letter meaning                                           shape
====== ================================================= ===============================
u      input of the recurrence                           (batch, tokens[, directions], channels)
delta  step size, before bias and softplus               (batch, tokens, directions, channels)
A      decay rates, negative                             (directions, channels, state)
B      input matrix, per token                           (batch, tokens, directions, state)
C      output matrix, per token                          (batch, tokens, directions, state)
D      skip connection                                   (directions, channels)
z      gate                                              (batch, tokens, channels)
h      the state                                         (batch, directions, channels, state)
====== ================================================= ===============================
"""

import importlib
import sys
from types import ModuleType

from vssm_kernels.activation import bias_gelu, bias_relu, bias_silu, gelu_again
from vssm_kernels.causal_conv1d import causal_conv1d
from vssm_kernels.deformable_sampling import deformable_sampling
from vssm_kernels.directed_linear import directed_linear, side_by_side
from vssm_kernels.dispatch import Backend, backend_report, use_backend
from vssm_kernels.grid_tree import grid_tree
from vssm_kernels.noncausal_ssd import noncausal_ssd
from vssm_kernels.orders import ScanTable
from vssm_kernels.parameters import CAST, RATES, Form, Layout, read_parameters
from vssm_kernels.readout import readout
from vssm_kernels.running_norm import batch_norm
from vssm_kernels.selective_scan import selective_scan
from vssm_kernels.ssd import ssd
from vssm_kernels.standard import standard_operations
from vssm_kernels.state_fusion import state_fusion
from vssm_kernels.sum_gate import sum_gate, sum_gate_again
from vssm_kernels.sum_norm import add_norm, sum_norm
from vssm_kernels.tree_scan import tree_scan
from vssm_kernels.wavefront_scan import wavefront_scan
from vssm_kernels.weighted_sum import direction_means, weighted_sum

__all__ = [
    "CAST",
    "RATES",
    "Backend",
    "Form",
    "Layout",
    "ScanTable",
    "add_norm",
    "backend_report",
    "batch_norm",
    "bias_gelu",
    "bias_relu",
    "bias_silu",
    "causal_conv1d",
    "deformable_sampling",
    "directed_linear",
    "direction_means",
    "gelu_again",
    "grid_tree",
    "noncausal_ssd",
    "read_parameters",
    "readout",
    "selective_scan",
    "side_by_side",
    "ssd",
    "standard_operations",
    "state_fusion",
    "sum_gate",
    "sum_gate_again",
    "sum_norm",
    "tree_scan",
    "use_backend",
    "wavefront_scan",
    "weighted_sum",
]

importlib.import_module("vssm_kernels.flops")

# An op's function has the name of its package and hides it here, so that it offers the package's modules too:
# `import vssm_kernels.selective_scan.reference` and then that name work.
for _op in (
    causal_conv1d,
    deformable_sampling,
    grid_tree,
    noncausal_ssd,
    readout,
    selective_scan,
    ssd,
    state_fusion,
    sum_gate,
    sum_norm,
    tree_scan,
    wavefront_scan,
    weighted_sum,
):
    _package = sys.modules[_op.__module__]
    vars(_op).update({name: value for name, value in vars(_package).items() if isinstance(value, ModuleType)})
