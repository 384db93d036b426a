"""The Triton kernels compile for a GPU that is not there; the interpreter checks no compile-time rules."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("compile_for_gpu.py")
# At least so many variants of each kernel: a case that is left out shows here.
VARIANTS = {
    "activation.forward_kernel": 3,
    "activation.backward_kernel": 4,
    "causal_conv1d.triton_fused.forward_kernel": 2,
    "causal_conv1d.triton_fused.backward_kernel": 2,
    "deformable_sampling.triton_fused.forward_kernel": 1,
    "deformable_sampling.triton_fused.predicted_kernel": 1,
    "deformable_sampling.triton_fused.add_kernel": 1,
    "deformable_sampling.triton_fused.read_kernel": 1,
    "direction_sum.sum_kernel": 2,
    "direction_sum.sum_blocks_kernel": 1,
    "grid_tree.triton_fused.edges_kernel": 1,
    "grid_tree.triton_fused.spanning_kernel": 2,
    "grid_tree.triton_fused.walk_kernel": 1,
    "running_norm.norm_kernel": 8,
    "selective_scan.triton_chunk_kernels.ends_kernel": 4,
    "selective_scan.triton_chunk_kernels.carry_kernel": 4,
    "selective_scan.triton_kernels.forward_kernel": 12,
    "selective_scan.triton_kernels.backward_kernel": 8,
    "shares.sum_shares_kernel": 7,
    "ssd.triton_kernels.forward_kernel": 6,
    "ssd.triton_kernels.ends_kernel": 4,
    "ssd.triton_kernels.backward_kernel": 3,
    "readout.triton_fused.read_kernel": 2,
    "readout.triton_fused.backward_kernel": 2,
    "state_fusion.triton_fused.walk_kernel": 2,
    "state_fusion.triton_fused.fold_kernel": 1,
    "state_fusion.triton_fused.weight_kernel": 1,
    "sum_gate.triton_fused.forward_kernel": 2,
    "sum_gate.triton_fused.backward_kernel": 1,
    "sum_norm.triton_fused.forward_kernel": 8,
    "sum_norm.triton_fused.backward_kernel": 8,
    "wavefront_scan.triton_kernels.forward_kernel": 4,
    "wavefront_scan.triton_kernels.backward_kernel": 2,
    "tree_scan.triton_fused.forward_kernel": 1,
    "tree_scan.triton_fused.backward_kernel": 1,
    "weighted_sum.triton_fused.weigh_kernel": 2,
    "weighted_sum.triton_fused.sum_kernel": 6,
}


def test_kernels_compile_for_hopper():
    pytest.importorskip("triton", reason="Triton is optional; without it there is nothing to compile")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = dict(line.removeprefix("vssm_kernels.").split() for line in done.stdout.splitlines())
    assert found.keys() == VARIANTS.keys()
    for kernel, least in VARIANTS.items():
        assert int(found[kernel]) >= least, f"{kernel} was compiled in {found[kernel]} variants; expected {least}"
