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
from vssm_kernels.selective_scan import triton_chunk_kernels as chunks, triton_fused, triton_kernels as scan
from vssm_kernels.sum_gate import triton_fused as gate
from vssm_kernels.sum_norm import triton_fused as norm

ROWS = {"u", "delta", "B", "C", "y", "dy", "du", "ddelta", "x", "dx", "z", "out", "gradient", "dsum", "dz", "merged"}
ROWS |= {"summed"}
WIDE = {"weight", "shares", "A", "D", "bias", "checkpoints", "dB", "dC"}
WIDE |= {"carried", "ends", "decays"}
OTHER = {"order": "*i32", "scale": "fp32", "eps": "fp32", "zero": "fp32"}

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

def build_scan(kernel, launch, switches):
    options = launch.options()
    warps = options.pop("num_warps")
    build(kernel, warps, {**switches, **options})

CASES = (
    (96, 1, 1, False, True), (96, 1, 4096, False, True), (128, 1, 4096, False, True),
    (96, 16, 1, False, True), (96, 16, 1, True, True), (96, 4, 1, False, False),
)
for channels, state, sequences, add, with_C in CASES:
    common = dict(HAS_ORDER=True, HAS_D=with_C, HAS_BIAS=True, HAS_C=with_C, SEGMENTED=add, WIDE=add)
    common |= dict(ROW_ALIGN=1 if add else 2, STATE_ALIGN=8 if state == 16 else 1)
    common |= dict(BESIDE=state == 1 and sequences > 1)
    chunked = not add and with_C
    forwards, back = triton_fused._launches(channels, state, sequences)
    keeps = state <= triton_fused.FEW_STATES
    for every, walk_again in ((0, False), (back.unroll, not keeps)):
        forward = {"CHECKPOINT": every, "AGAIN": walk_again, "ADD": add and not walk_again, "UNIT": back.block_c}
        forward |= {"CHUNKED": chunked, "PARTS": 1 + add}
        build_scan(scan.forward_kernel, forwards, {**common, **forward})
    backward = {"ADD": add, "PARTS": 1 + add, "CHUNKED": chunked, "WITH_C": keeps}
    build_scan(scan.backward_kernel, back, {**common, **backward})
    ends = {name: value for name, value in common.items() if name in chunks.ends_kernel.arg_names}
    for adjoint in (False, True) if chunked else ():
        build_scan(chunks.ends_kernel, forwards, {**ends, "ADJOINT": adjoint})
for adjoint in (False, True):
    for count in (2, triton_fused.CHUNKS):
        build(chunks.carry_kernel, 4, {"CHUNKS": count, "BLOCK": triton_fused.CARRY_TILE // count, "ADJOINT": adjoint})
for kernel, launch in ((conv.forward_kernel, conv._FORWARD), (conv.backward_kernel, conv._BACKWARD)):
    switches = dict(HAS_BIAS=True, SILU=True, WIDTH=4, **launch)
    build(kernel, switches.pop("num_warps"), switches)
tiles = dict(direction_sum.TILE)
warps = tiles.pop("num_warps")
for summed in ({}, {"summed": None}):
    build(gate.forward_kernel, warps, {**tiles, "DIRECTIONS": 2, **summed})
build(gate.backward_kernel, warps, tiles)
build(direction_sum.sum_kernel, warps, {**tiles, "DIRECTIONS": 2})
for channels, directions, center in ((96, 4, True), (768, 1, False)):
    tile = dict(norm._tile(channels))
    warps = tile.pop("num_warps")
    absent = {} if center else {"bias": None, "merged": None}
    build(norm.forward_kernel, warps, {**tile, **absent, "DIRECTIONS": directions, "CENTER": center})
    build(norm.backward_kernel, warps, {**tile, "CENTER": center, "HAS_BIAS": center, "STAGES": norm._STAGES})
print("compiled")
"""


def test_kernels_compile_for_hopper():
    pytest.importorskip("triton", reason="Triton is optional; without it there is nothing to compile")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "compiled", done.stderr[-3000:]
