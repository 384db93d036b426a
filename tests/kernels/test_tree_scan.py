"""The scan of a tree: outputs and every gradient of every backend against sums over paths, in all precisions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from on_backends import device_of, require
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vssm_kernels import grid_tree, tree_scan, use_backend
from vssm_kernels.testing import TOLERANCE, assert_close, run_backend
from vssm_kernels.tree_scan import OP, native_cpu, reference, triton_fused
from vssm_kernels.tree_scan.arguments import TreeScanArguments

RECORD = json.loads((Path(__file__).parents[1] / "parity" / "grootvl_ops.json").read_text())["cases"]
NAMES = ("u", "delta", "A", "B", "delta_bias")
BACKENDS = pytest.mark.parametrize(
    "backend", [native_cpu.BACKEND, triton_fused.BACKEND, reference.BACKEND], ids=lambda backend: backend.name
)
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
GRIDS = [(1, 1), (1, 9), (9, 1), (4, 7), (7, 4)]


def make_inputs(
    height: int = 4, width: int = 7, channels: int = 5, batch: int = 2, dtype=torch.float32, device="cpu"
) -> list[Tensor]:
    """Rates and step sizes as in a trained model, and the trees of random maps; rates and biases are never narrow."""
    generator = torch.Generator().manual_seed(0)
    tokens, wide = height * width, torch.promote_types(dtype, torch.float32)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tree = grid_tree(normal(batch, height, width, 8)).to(device)
    u, delta, B = (normal(batch, tokens, *more).to(device, dtype) for more in ((channels,), (channels,), ()))
    A, bias = -torch.exp(0.3 * normal(channels)), 0.5 * normal(channels) - 1
    A, bias = (each.to(device, wide) for each in (A, bias))
    return [*(each.requires_grad_() for each in (u, delta, A, B, bias)), tree]


def over_paths(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, delta_bias: Tensor, tree: Tensor) -> Tensor:
    """Every vertex adds to every other one: the paper's double sum, path by path."""
    step = torch.log1p(torch.exp(delta + delta_bias))
    images = []
    for b, table in enumerate(tree.tolist()):
        parent = dict(zip(*table[:2], strict=True))

        def to_root(vertex: int, parent: dict[int, int] = parent) -> list[int]:
            return [vertex, *to_root(parent[vertex])] if vertex >= 0 else []

        rows = []
        for v in range(len(parent)):
            state = 0
            for s in range(len(parent)):
                # The edges of a path are above the vertices that are below v or s, but not both.
                ends = set(to_root(v)) ^ set(to_root(s))
                exponent = sum((step[b, c] * A for c in ends), torch.zeros_like(A))
                state = state + torch.exp(exponent) * step[b, s] * B[b, s] * u[b, s]
            rows.append(state)
        images.append(torch.stack(rows))
    return torch.stack(images)


def output_and_gradients(function, inputs: list[Tensor]) -> list[Tensor]:
    output = function(*inputs)
    weights = torch.linspace(-1, 1, output.numel(), device=output.device).view(output.shape)
    gradient = weights.to(output.dtype)
    return [output, *torch.autograd.grad(output, inputs[:-1], gradient, allow_unused=True, materialize_grads=True)]


def on(backend, inputs: list[Tensor]) -> list[Tensor]:
    """The inputs as leaves where a backend runs, which takes them."""
    inputs = [each.detach().to(device_of(backend)).requires_grad_(each.requires_grad) for each in inputs]
    require(backend, TreeScanArguments(*inputs))
    return inputs


@BACKENDS
@pytest.mark.parametrize(
    ("grid", "dtype"),
    [(grid, dtype) for grid in GRIDS for dtype in TOLERANCE if dtype.itemsize > 2 or grid == (4, 7)],
    ids=str,
)
def test_output_and_every_gradient_are_sums_over_paths(grid, dtype, backend):
    if dtype == torch.float64 and backend is not reference.BACKEND:
        pytest.skip("computes in float32")
    inputs = make_inputs(*grid, dtype=dtype)
    exact = [each.detach().double().requires_grad_() for each in inputs[:-1]]
    with use_backend(backend.name):
        found = output_and_gradients(tree_scan, on(backend, inputs))
    expected = output_and_gradients(over_paths, [*exact, inputs[-1]])
    assert found[0].dtype == torch.promote_types(dtype, torch.float32)
    for name, one, want, given in zip(("output", *NAMES), found, expected, [found[0], *inputs], strict=False):
        assert one.dtype == given.dtype
        assert_close(one.cpu(), want, name, tolerance=TOLERANCE[dtype])


@BACKENDS
@pytest.mark.parametrize("case", range(len(RECORD)))
def test_official_states(case, backend):
    recorded = RECORD[case]
    batch, channels, height, width = (recorded[name] for name in ("B", "D", "H", "W"))
    rng = np.random.Generator(np.random.PCG64(recorded["seed"]))

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

    u, delta = (normal(batch, channels, height * width).mT for _ in range(2))
    A, B, C = -torch.exp(0.1 * normal(channels)), normal(batch, height * width), normal(batch, height * width)
    D, bias = 1 + 0.1 * normal(channels), -1 + 0.5 * normal(channels)
    tree = grid_tree(u.unflatten(1, (height, width)))
    inputs = on(backend, [u, delta, A, B, bias, tree])
    with torch.no_grad(), use_backend(backend.name):
        h = tree_scan(*inputs).cpu()
    torch.testing.assert_close(h.flatten(), torch.tensor(recorded["state_h (B,L,D) flattened"]), rtol=0, atol=5e-6)
    y = F.layer_norm(h, (channels,)) * C[..., None] + D * u
    torch.testing.assert_close(y.mT.flatten(), torch.tensor(recorded["y (B,D,L) flattened"]), rtol=0, atol=2e-5)


@BACKENDS
def test_more_channels_and_vertices_than_a_tile(backend, monkeypatch):
    monkeypatch.setattr(triton_fused, "_NARROW", {"VERTICES": 2, "num_warps": 1})
    OP.forget()
    inputs = on(backend, make_inputs(4, 4, channels=34, batch=1))
    inputs[-1] = grid_tree(torch.ones(1, 4, 4, 1)).to(inputs[-1])  # levels of up to four
    with use_backend(backend.name):
        found = output_and_gradients(tree_scan, inputs)
    with use_backend("reference"):
        expected = output_and_gradients(tree_scan, inputs)
    OP.forget()
    for name, one, want in zip(("output", *NAMES), found, expected, strict=True):
        assert_close(one, want, name)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strided_inputs_and_nothing_left_unwritten(dtype, backend, poisoned_memory):
    """B and delta as parts of one projection's rows, u with channels apart."""
    plain = on(backend, make_inputs(3, 4, channels=8, dtype=dtype))
    u, delta, A, B, bias, tree = plain
    rows = torch.cat([delta, B[..., None], B[..., None]], -1).detach()
    strided = [u.detach().mT.contiguous().mT, rows[..., :8], A, rows[..., 8], bias]
    strided = [*(each.detach().requires_grad_() for each in strided), tree.mT.contiguous().mT]
    with use_backend(backend.name):
        for one, want in zip(
            output_and_gradients(tree_scan, strided), output_and_gradients(tree_scan, plain), strict=True
        ):
            torch.testing.assert_close(one, want, rtol=0, atol=0)


@BACKENDS
def test_two_runs_are_bit_equal_and_batches_do_not_mix(backend):
    inputs = [each.detach() for each in on(backend, make_inputs(3, 4))]
    args = TreeScanArguments(*inputs)
    gradient = torch.linspace(-1, 1, args.u.numel(), device=args.device).view(args.u.shape)
    first, second = (run_backend(backend, args, gradient) for _ in range(2))
    for one, other in zip((first[0], *first[1]), (second[0], *second[1]), strict=True):
        assert torch.equal(one, other)
    alone = TreeScanArguments(*(each[1:] if each.dim() > 1 else each for each in inputs))
    output, (du, *_) = run_backend(backend, alone, gradient[1:])
    assert_close(output, first[0][1:])
    assert_close(du, first[1][0][1:])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("side", "channels"), [(56, 160), (14, 640), (7, 1280)])
def test_sizes_of_models_on_a_gpu(side, channels, dtype):
    inputs = make_inputs(side, side, channels, batch=3, dtype=dtype, device="cuda")
    found, again = (output_and_gradients(tree_scan, inputs) for _ in range(2))
    exact = [each.detach().double().requires_grad_() for each in inputs[:-1]]
    expected = output_and_gradients(tree_scan, [*exact, inputs[-1]])
    for name, one, other, want in zip(("output", *NAMES), found, again, expected, strict=True):
        assert torch.equal(one, other), name
        assert_close(one, want, name, tolerance=TOLERANCE[dtype])


@pytest.mark.gpu
def test_capture_in_a_graph():
    inputs = [each.detach() for each in make_inputs(14, 14, 64, device="cuda")]
    expected = tree_scan(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = tree_scan(*inputs)
    found.zero_()
    graph.replay()
    assert torch.equal(found, expected)


@DEVICES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_narrows_nothing(dtype, device):
    inputs = make_inputs(device=device)
    expected = output_and_gradients(tree_scan, inputs)
    with torch.autocast(device, dtype):
        found = output_and_gradients(tree_scan, inputs)
    for name, one, want in zip(("output", *NAMES), found, expected, strict=True):
        torch.testing.assert_close(one, want, rtol=0, atol=0, msg=name)


@BACKENDS
def test_far_weights(backend):
    """Edges that let nothing through, and those that let everything through: the sum over the whole map."""
    u, delta, A, B, bias, tree = on(backend, make_inputs())
    with torch.no_grad(), use_backend(backend.name):
        alone = tree_scan(u, delta, 1e4 * A, B, bias, tree)
        everything = tree_scan(u, delta, 0 * A, B, bias, tree)
    added = F.softplus(delta + bias) * B[..., None] * u
    assert_close(alone, added.detach(), tolerance=1e-3)
    assert_close(everything, added.detach().sum(1, keepdim=True).expand_as(added))


def test_second_derivatives_forward_mode_and_vmap():
    *inputs, tree = make_inputs(2, 2, 2, 1, dtype=torch.float64)

    def function(*tensors: Tensor) -> Tensor:
        return tree_scan(*tensors, tree)

    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


@DEVICES
def test_compiles_and_has_shapes_on_the_meta_device(device):
    inputs = make_inputs(device=device)
    compiled = torch.compile(tree_scan, fullgraph=True, backend="aot_eager")
    for one, want in zip(output_and_gradients(compiled, inputs), output_and_gradients(tree_scan, inputs), strict=True):
        assert_close(one, want)
    torch.library.opcheck(OP.operator, (*inputs, True))
    meta = [each.to("meta") for each in inputs]
    assert tree_scan(*meta).shape == (2, 28, 5)
    empty = [each[:0] if each.dim() > 1 else each for each in inputs]
    assert tree_scan(*empty).shape == (0, 28, 5)


def test_operations_are_those_of_a_selective_scan_with_one_state():
    inputs, once = make_inputs(), 2 * 9 * (2 * 28 * 5)
    with FlopCounterMode(display=False) as counter:
        h = tree_scan(*inputs)
        assert counter.get_total_flops() == once
        h.sum().backward()
        assert counter.get_total_flops() == 3 * once


@pytest.mark.parametrize("name", [*NAMES, "tree"])
def test_shapes_that_do_not_fit_are_named(name):
    inputs = dict(zip((*NAMES, "tree"), make_inputs(), strict=True))
    inputs[name] = inputs[name][..., 0]
    with pytest.raises(ValueError, match=rf"^{name} has shape \(.*\); expected \("):
        tree_scan(**inputs)


def test_another_dtype_or_device_of_the_tree_is_named():
    u, delta, A, B, bias, tree = make_inputs()
    with pytest.raises(TypeError, match=r"tree is torch\.int64; expected torch\.int32, as grid_tree makes it"):
        tree_scan(u, delta, A, B, bias, tree.long())
    with pytest.raises(ValueError, match="tree is on meta but u on cpu; move both to one device"):
        tree_scan(u, delta, A, B, bias, tree.to("meta"))


@pytest.mark.parametrize(("row", "name"), [(0, "vertices"), (1, "parents")])
@pytest.mark.parametrize("entry", [-5, 28])
def test_a_table_that_leaves_the_map_is_refused(row, name, entry):
    *inputs, tree = make_inputs()
    tree = tree.clone()
    tree[1, row, 3] = entry
    with pytest.raises(ValueError, match=f"tree has {name} from .* to .*; expected 0 to 27, as grid_tree makes it"):
        tree_scan(*inputs, tree)
