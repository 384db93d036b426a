"""Compile every Triton kernel for a GPU that is not there, with the arguments of real launches: run by its test.

The ops' own host functions run on the CPU, with every kernel replaced by one that compiles instead of running. So the
types are those of the arguments that they are launched with, and a name that a kernel does not have is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from triton.runtime.jit import JITFunction

from vssm_kernels import ScanTable, activation, direction_sum, running_norm, shares
from vssm_kernels.causal_conv1d import triton_fused as conv
from vssm_kernels.causal_conv1d.arguments import ConvArguments
from vssm_kernels.deformable_sampling import triton_fused as sampling
from vssm_kernels.deformable_sampling.arguments import SamplingArguments
from vssm_kernels.grid_tree import triton_fused as grid
from vssm_kernels.grid_tree.arguments import MapArguments
from vssm_kernels.readout import triton_fused as readout
from vssm_kernels.readout.arguments import ReadoutArguments
from vssm_kernels.selective_scan import triton_chunk_kernels, triton_kernels
from vssm_kernels.selective_scan import triton_fused as scan
from vssm_kernels.selective_scan.arguments import ScanArguments
from vssm_kernels.ssd import triton_fused as ssd
from vssm_kernels.ssd import triton_kernels as ssd_kernels
from vssm_kernels.ssd.arguments import SSDArguments
from vssm_kernels.state_fusion import triton_fused as fusion
from vssm_kernels.state_fusion.arguments import FusionArguments
from vssm_kernels.sum_gate import triton_fused as gate
from vssm_kernels.sum_gate.arguments import GateArguments
from vssm_kernels.sum_norm import triton_fused as norm
from vssm_kernels.sum_norm.arguments import NormArguments
from vssm_kernels.testing import make_inputs
from vssm_kernels.tree_scan import triton_fused as tree_scan
from vssm_kernels.tree_scan.arguments import TreeScanArguments
from vssm_kernels.wavefront_scan import triton_fused as wavefront
from vssm_kernels.wavefront_scan import triton_kernels as wavefront_kernels
from vssm_kernels.wavefront_scan.arguments import WavefrontArguments
from vssm_kernels.weighted_sum import triton_fused as weighted
from vssm_kernels.weighted_sum.arguments import MeanArguments, WeightedArguments

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64"}
compiled: dict[str, set[str]] = {}


class Compiled:
    """Stands for a kernel: a launch compiles it for Hopper, once for each set of types and shortened constants."""

    def __init__(self, kernel: JITFunction):
        self.kernel, self.arg_names = kernel, kernel.arg_names
        self.done: set[str] = set()
        compiled[f"{kernel.fn.__module__}.{kernel.fn.__name__}"] = self.variants = set()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.launch

    def launch(self, *args: Any, **named: Any) -> None:
        given = {**dict(zip(self.arg_names, args, strict=False)), **named}
        options = {name: given.pop(name) for name in list(given) if name not in self.arg_names}
        assert set(options) <= {"num_warps", "num_stages", "maxnreg"}, (
            f"{self.kernel.fn.__name__} has no parameters {sorted(options)}"
        )
        constant = {parameter.name for parameter in self.kernel.params if parameter.is_constexpr}
        constants = {name: value for name, value in given.items() if name in constant or value is None}
        types = {
            name: "constexpr" if name in constants else type_of(given[name]) for name in self.arg_names
        }  # a KeyError is an argument that the launch left out
        self.variants.add(f"{types} {constants} {options}")
        constants = shortened(constants)
        if (what := f"{types} {constants} {options}") not in self.done:
            self.done.add(what)
            by_place = {(self.arg_names.index(name),): value for name, value in constants.items()}
            source = ASTSource(fn=self.kernel, signature=types, constexprs=by_place)
            compile(source, target=HOPPER, options=options)


def shortened(constants: dict[str, Any]) -> dict[str, Any]:
    """The body of a loop written out twice shows what four and eight times do, and compiles in a tenth of the time."""
    times = constants.get("UNROLL", 1) // 2
    fewer = {"UNROLL": 2, "CHECKPOINT": constants.get("CHECKPOINT", 0) // max(times, 1)}
    return {name: fewer.get(name, value) for name, value in constants.items()} if times > 1 else constants


def type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def replace_kernels() -> None:
    """In every module; the functions that kernels call stay what they are."""
    for module in (
        conv,
        triton_chunk_kernels,
        triton_kernels,
        ssd_kernels,
        fusion,
        gate,
        norm,
        direction_sum,
        readout,
        sampling,
        activation,
        running_norm,
        shares,
        wavefront_kernels,
        grid,
        tree_scan,
        weighted,
    ):
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction) and name.endswith("_kernel"):
                setattr(module, name, Compiled(value))


def run_scan(
    channels: int,
    state: int,
    tokens: int = 8,
    batch: int = 1,
    *,
    repeats: bool = False,
    states: bool = False,
    dtype: torch.dtype | None = None,
) -> None:
    """Forward, with and without saving, and backward; the chunks of long sequences too."""
    given = make_inputs(batch, tokens, 4, channels, state)
    given |= {name: given[name].bfloat16() for name in ("u", "delta", "B", "C")}
    if states:
        given |= {"C": None, "D": None}
    elif state == 1:  # side by side, as one projection makes them
        given["B"], given["C"] = torch.stack([given["B"], given["C"]], -1).unbind(-1)
    table = torch.zeros(4, tokens, dtype=torch.int32) if repeats else torch.arange(tokens).expand(4, -1)
    args = ScanArguments(**given, order=ScanTable.of(table, tokens), segment=4 if repeats else 0, dtype=dtype)
    for save in (False, True):
        y, saved = scan.BACKEND.forward(args, save)
        scan.BACKEND.backward(args.for_backward(saved), y)


def run_wavefront(channels: int, state: int, *, reverse: bool) -> None:
    rows = (1, 3, 5)
    u, C = torch.randn(*rows, channels).bfloat16(), torch.randn(*rows, state).bfloat16()
    delta, B = torch.stack([u, u], 3), torch.stack([C, C], 3)
    A, D, bias = -torch.ones(2, channels, state), torch.ones(channels), torch.ones(2, channels)
    args = WavefrontArguments(u, delta, A, B, C, *((None, None) if reverse else (D, bias)), reverse)
    wavefront.BACKEND.backward(args, wavefront.BACKEND.forward(args, False)[0])


def run_ssd(batch: int, tokens: int, dtype: torch.dtype, *, order: bool = False, initial: bool = False) -> None:
    """Forward, with and without saving, and backward; the segments of long sequences too."""
    heads, state = 6, 64
    u, delta = torch.randn(batch, tokens, heads, 64, dtype=dtype), torch.randn(batch, tokens, 2, heads, dtype=dtype)
    B, C = torch.randn(2, batch, tokens, 2, 1, state, dtype=dtype)
    per_head = torch.randn(2, heads)
    table = ScanTable.of(torch.arange(tokens).expand(2, -1), tokens) if order else None
    start = torch.zeros(batch, 2, heads, 64, state, dtype=dtype) if initial else None
    D = None if order else per_head
    args = SSDArguments(u, delta, per_head, B, C, D, per_head, start, order=table, shift=order, merge=order)
    for save in (False, True):
        y, saved = ssd.BACKEND.forward(args, save)
        ssd.BACKEND.backward(args.for_backward(saved), y)


def main() -> None:
    replace_kernels()
    run_scan(96, 1)
    run_scan(96, 1, batch=1024)
    run_scan(128, 1, batch=1024)
    run_scan(96, 1, tokens=4096)
    run_scan(96, 1, tokens=4096, dtype=torch.float32)
    run_scan(96, 16, tokens=64)
    run_scan(96, 16, tokens=4096)
    run_scan(97, 16, repeats=True)
    run_scan(96, 4, states=True)
    run_ssd(64, 70, torch.bfloat16, order=True)
    run_ssd(1, 1024, torch.bfloat16)
    run_ssd(1, 1024, torch.float32, order=True, initial=True)
    x, weight, bias = torch.randn(2, 9, 96).bfloat16(), torch.randn(2, 96, 4), torch.randn(2, 96)
    order = ScanTable.of(torch.arange(9).expand(2, -1), 9)
    for silu, offset in ((True, bias), (False, None)):
        args = ConvArguments(x, weight, offset, order, silu)
        conv.BACKEND.backward(args, conv.BACKEND.forward(args, False)[0])
    y, z = torch.randn(2, 9, 3, 96).bfloat16(), torch.randn(2, 9, 96).bfloat16()
    for z_or_none in (z, None):
        for save in (True, False):
            args = GateArguments(y, z_or_none, 0.5)
            out, summed = gate.BACKEND.forward(args, save)
            gate.BACKEND.backward(args.for_backward(summed), out)
        args = WeightedArguments(y, torch.randn(2, 3, 96), z_or_none)
        weighted.BACKEND.backward(args, weighted.BACKEND.forward(args, False)[0])
        args = MeanArguments(y, z_or_none)
        weighted.MEANS.backward(args, weighted.MEANS.forward(args, False)[0])
    for shape, center, groups in (((2, 9, 4, 96), True, 1), ((2, 9, 1, 768), False, 1), ((2, 9, 1, 348), True, 4)):
        for bias in (torch.ones(shape[-1]), None):
            args = NormArguments(
                torch.randn(shape).bfloat16(), torch.ones(shape[-1]), bias, 1e-5, center, z.dtype, True, groups
            )
            out, sums = norm.BACKEND.forward(args, True)
            norm.BACKEND.backward(args.for_backward(sums), out)
    args = SamplingArguments(torch.randn(2, 3, 5, 64).bfloat16(), torch.randn(2, 3, 5, 56).bfloat16(), 2)
    sampling.BACKEND.backward(args, sampling.BACKEND.forward(args, False)[0])
    args = FusionArguments(torch.randn(2, 3, 5, 128), torch.randn(3, 128, 3, 3))
    fusion.BACKEND.backward(args, fusion.BACKEND.forward(args, False)[0])
    for directions in (1, 2):
        states, C = torch.randn(2, directions, 9, 96), torch.randn(2, 9, directions).bfloat16()
        args = ReadoutArguments(states, C, torch.randn(directions, 96), torch.randn(2, 9, 96).bfloat16())
        readout.BACKEND.backward(args, readout.BACKEND.forward(args, False)[0])
    stream, branch = torch.randn(2, 9, 96), torch.randn(2, 9, 96).bfloat16()
    for kept in (torch.ones(2, 1, 1).bfloat16(), None):
        args = NormArguments(stream, weight[0, :, 0].contiguous(), torch.ones(96), 1e-5, True, branch.dtype, False)
        for bias in (args.bias.bfloat16(), None):
            norm.plan_add(args, 9, 1.25)(args, branch, bias, kept)
            dtype = None if bias is None else bias.dtype
            norm.plan_add_backward(args, branch.dtype, dtype, 9, 1.25)(args, stream, branch, kept)
    run_wavefront(64, 16, reverse=False)
    run_wavefront(5, 3, reverse=True)
    for height, width in ((56, 56), (7, 5), (1, 1)):
        x = torch.randn(2, height, width, 160).bfloat16()
        tree, _ = grid.BACKEND.forward(MapArguments(x), False)
        rates = torch.ones(160)
        args = TreeScanArguments(x.flatten(1, 2), x.flatten(1, 2), -rates, x[..., 0].flatten(1, 2), rates, tree)
        tree_scan.BACKEND.backward(args, tree_scan.BACKEND.forward(args, False)[0])
    x = torch.randn(2, 9, 87).bfloat16()
    for function in (F.silu, F.gelu, F.relu):
        activation._plan_forward(function, x, x[0, 0])(x, x[0, 0])
    for function in (F.silu, F.gelu):
        for bias in (x[0, 0], None):
            activation._plan_backward(function, x, bias, x, again=function is F.gelu)(x, bias, x)
    for function in (None, F.relu, F.silu, F.gelu):
        for affine in (torch.ones(87), None):
            launch = running_norm._plan(function, x, 1e-5)
            launch(x, torch.ones(87), torch.ones(87), affine, affine, x)
    for name, variants in compiled.items():
        print(name, len(variants))


if __name__ == "__main__":
    main()
