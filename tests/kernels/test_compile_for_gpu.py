"""The Triton kernels compile for a GPU that is not there; the interpreter checks no compile-time rules."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from vssm_kernels import direction_sum
from vssm_kernels.causal_conv1d import triton_fused as conv
from vssm_kernels.selective_scan import triton_fused
from vssm_kernels.sum_gate import triton_fused as gate

ROWS = {"u", "delta", "B", "C", "y", "dy", "du", "ddelta", "x", "dx", "z", "out", "gradient", "dsum", "dz"}
WIDE = {"weight", "shares", "A", "D", "bias", "checkpoints", "dA", "dB", "dC", "dD", "dbias"}
OTHER = {"order": "*i32", "scale": "fp32"}

def build(kernel, warps, switches):
    types = {}
    for name in kernel.arg_names:
        if name in switches:
            types[name] = "constexpr"
        else:
            types[name] = "*bf16" if name in ROWS else "*fp32" if name in WIDE else OTHER.get(name, "i32")
    constants = {(kernel.arg_names.index(name),): value for name, value in switches.items()}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})

for state, add, with_C in ((1, False, True), (16, False, True), (16, True, True), (4, False, False)):
    common = dict(HAS_ORDER=True, HAS_D=with_C, HAS_BIAS=True, HAS_C=with_C, SEGMENTED=add)
    for checkpoint in (False, True):
        launch = triton_fused._launch(96, state, backward=checkpoint)
        tiles = dict(BLOCK_C=launch.block_c, BLOCK_N=launch.block_n, UNROLL=launch.unroll)
        forward = {"STAGES": launch.stages, "CHECKPOINT": checkpoint, "ADD": add and not checkpoint}
        build(triton_fused.forward_kernel, launch.warps, {**common, **tiles, **forward})
    build(triton_fused.backward_kernel, launch.warps, {**common, **tiles, "ADD": add})
for kernel, launch in ((conv.forward_kernel, conv._FORWARD), (conv.backward_kernel, conv._BACKWARD)):
    switches = dict(HAS_BIAS=True, SILU=True, WIDTH=4, **launch)
    build(kernel, switches.pop("num_warps"), switches)
for kernel in (gate.forward_kernel, gate.backward_kernel, direction_sum.sum_kernel):
    tiles = dict(DIRECTIONS=2, **direction_sum.TILE)
    build(kernel, tiles.pop("num_warps"), tiles)
print("compiled")
"""


def test_kernels_compile_for_hopper():
    pytest.importorskip("triton", reason="Triton is optional; without it there is nothing to compile")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "compiled", done.stderr[-3000:]
