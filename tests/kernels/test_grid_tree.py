"""The minimum spanning tree of a map: every backend against Kruskal's algorithm, and against official trees."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from on_backends import DEVICE, device_of, require
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vssm_kernels import grid_tree, standard_operations, use_backend
from vssm_kernels.grid_tree import OP, native_cpu, reference, triton_fused
from vssm_kernels.grid_tree.arguments import MapArguments

RECORD = json.loads((Path(__file__).parents[1] / "parity" / "grootvl_ops.json").read_text())["cases"]
BACKENDS = pytest.mark.parametrize(
    "backend", [native_cpu.BACKEND, triton_fused.BACKEND, reference.BACKEND], ids=lambda backend: backend.name
)
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
GRIDS = [(1, 1), (1, 2), (2, 1), (1, 9), (9, 1), (2, 2), (4, 7), (7, 4), (9, 9)]


def make_map(height: int, width: int, channels: int = 6, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, height, width, channels, generator=torch.Generator().manual_seed(seed))


def tree(backend, x: Tensor) -> Tensor:
    args = MapArguments(x.to(device_of(backend)))
    require(backend, args)
    return backend.forward(args, False)[0].cpu()


def edges(table: Tensor) -> list[set[tuple[int, int]]]:
    """Of every image, each with its smaller end first."""
    return [{tuple(sorted(edge)) for edge in image[:2, 1:].T.tolist()} for image in table]


def kruskal(x: Tensor) -> set[tuple[int, int]]:
    """The tree of one image: edges from the lowest on, unless they would close a circle."""
    height, width, _ = x.shape
    grid = torch.arange(height * width).view(height, width)
    pairs = [*zip(grid[:-1].flatten().tolist(), grid[1:].flatten().tolist(), strict=True)]
    pairs += zip(grid[:, :-1].flatten().tolist(), grid[:, 1:].flatten().tolist(), strict=True)
    rows, group = x.double().flatten(0, 1), list(range(height * width))
    weights = [torch.exp(-torch.cosine_similarity(rows[a], rows[b], dim=0)).item() for a, b in pairs]
    taken = set()
    for i in sorted(range(len(pairs)), key=lambda i: (round(weights[i], 6), i)):
        a, b = pairs[i]
        if group[a] != group[b]:
            taken.add(pairs[i])
            group = [group[a] if each == group[b] else each for each in group]
    return taken


def check_table(table: Tensor, width: int) -> None:
    """One image's table keeps what `grid_tree` promises, whatever its edges are."""
    vertices, parents, ends, levels = table.tolist()
    assert sorted(vertices) == list(range(len(vertices)))
    assert (vertices[0], parents[0]) == (0, -1)
    depth = {0: 0}
    for vertex, parent in list(zip(vertices, parents, strict=True))[1:]:
        depth[vertex] = depth[parent] + 1  # a KeyError is a child before its parent
        assert abs(vertex - parent) == width or (abs(vertex - parent) == 1 and vertex // width == parent // width)
    depths = [depth[vertex] for vertex in vertices]
    assert depths == sorted(depths)
    assert levels == [depths.index(each) for each in depths]
    for step, (begin, end) in enumerate(pairwise([1, *ends])):
        assert parents[begin:end] == [vertices[step]] * (end - begin)
    assert ends[-1] == len(vertices)
    clockwise = [-width, 1, width, -1]
    for step, (begin, end) in enumerate(pairwise([1, *ends])):
        up = clockwise.index(parents[step] - vertices[step]) if step else 3
        turns = [(clockwise.index(child - vertices[step]) - up) % 4 for child in vertices[begin:end]]
        assert width == 1 or turns == sorted(turns)


@BACKENDS
@pytest.mark.parametrize("case", range(len(RECORD)))
def test_official_trees(case, backend):
    recorded = RECORD[case]
    batch, channels, height, width = (recorded[name] for name in ("B", "D", "H", "W"))
    rng = np.random.Generator(np.random.PCG64(recorded["seed"]))
    x = torch.from_numpy(rng.standard_normal((batch, channels, height, width)).astype(np.float32))
    found = edges(tree(backend, x.permute(0, 2, 3, 1)))
    assert found == [set(map(tuple, image)) for image in recorded["tree_edges_sorted_u_lt_v"]]


@BACKENDS
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", ["random", "ties", "all alike", "nothing"])
def test_trees_are_those_of_kruskal(kind, grid, backend):
    x = make_map(*grid)
    if kind == "ties":  # cosines are a few numbers only: -1, 0, 1, and so are equal exactly
        x = torch.nn.functional.one_hot(x.argmax(-1) % 2, 6) * x[..., :1].sign()
    elif kind != "random":
        x = torch.full_like(x, float(kind == "all alike"))
    found = tree(backend, x.float())
    assert edges(found) == [kruskal(image) for image in x]
    for table in found:
        check_table(table, grid[1])


@BACKENDS
@pytest.mark.parametrize("grid", [(5, 12), (13, 6)], ids=str)
def test_backends_agree_on_the_whole_table(grid, backend):
    x = make_map(*grid, channels=70)
    assert torch.equal(tree(backend, x), tree(reference.BACKEND, x))


def test_a_map_larger_than_a_program_takes_at_once(monkeypatch):
    """On a GPU 64 x 64 positions; here 8, and levels of more than one."""
    monkeypatch.setattr(triton_fused, "_BLOCK_MAX", 8)
    monkeypatch.setattr(triton_fused, "_WALK", {"BLOCK": 1, "num_warps": 1})
    x = make_map(5, 7)
    assert torch.equal(tree(triton_fused.BACKEND, x), tree(reference.BACKEND, x))


@pytest.mark.gpu
@pytest.mark.parametrize("grid", [(56, 56), (100, 67), (14, 200)], ids=str)
def test_large_maps_on_a_gpu(grid):
    x = make_map(*grid, channels=96, batch=3).cuda()
    found = grid_tree(x)
    assert torch.equal(found, reference.tree(MapArguments(x))[0])
    assert torch.equal(found.cpu(), tree(native_cpu.BACKEND, x))
    for _ in range(20):
        assert torch.equal(grid_tree(x), found)


@pytest.mark.gpu
def test_capture_in_a_graph():
    """Built anew at every replay, for what lies in the map then."""
    x, other = make_map(14, 14).cuda(), make_map(14, 14, seed=1).cuda()
    grid_tree(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = grid_tree(x)
    x.copy_(other)
    graph.replay()
    assert torch.equal(found, grid_tree(other))


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precisions_are_compared_in_float32(dtype, backend):
    x = make_map(6, 8).to(dtype)
    assert torch.equal(tree(backend, x), tree(backend, x.float()))


@BACKENDS
def test_maps_without_numbers_have_some_tree(backend):
    """A training that has diverged ends in NaN, and not in a kernel that goes on for ever."""
    x = make_map(5, 6)
    x[0, 2] = x[1] = float("nan")
    for table in tree(backend, x):
        check_table(table, 6)


@BACKENDS
def test_strides_and_an_empty_batch(backend):
    x = make_map(5, 6)
    assert torch.equal(tree(backend, x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)), tree(backend, x))
    assert tree(backend, x[:0]).shape == (0, 4, 30)


@DEVICES
def test_no_gradient_and_no_narrow_cosines(device):
    x = make_map(5, 6).to(device).requires_grad_()
    assert not grid_tree(x).requires_grad
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(grid_tree(x), grid_tree(x.detach()))


@DEVICES
def test_compiles_exports_and_has_shapes_on_the_meta_device(device):
    x = make_map(3, 4).to(device)
    assert torch.equal(torch.compile(grid_tree, fullgraph=True, backend="aot_eager")(x), grid_tree(x))
    assert grid_tree(torch.empty(2, 3, 4, 5, device="meta")).shape == (2, 4, 12)
    torch.library.opcheck(OP.operator, (x, False))


class Tree(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return grid_tree(x)


def test_exports_of_any_size_and_of_one_in_standard_operations():
    dynamic, x = torch.export.Dim.DYNAMIC, make_map(3, 4)
    exported = torch.export.export(Tree(), (x,), dynamic_shapes=({1: dynamic, 2: dynamic},)).module()
    larger = make_map(5, 7)
    assert torch.equal(exported(larger), grid_tree(larger))
    with standard_operations():
        fixed = torch.export.export(Tree(), (x,), dynamic_shapes=({0: dynamic},))
        with pytest.raises(ValueError, match="made for one height and width: declare only the batch dynamic"):
            torch.export.export(Tree(), (x,), dynamic_shapes=({1: dynamic, 2: dynamic},))
    assert not any("vssm" in str(node.target) for node in fixed.graph.nodes)
    assert torch.equal(fixed.module()(x[:1].repeat(3, 1, 1, 1)), grid_tree(x[:1].repeat(3, 1, 1, 1)))


def test_images_are_mapped_over():
    x = make_map(3, 4)
    found = torch.func.vmap(lambda image: grid_tree(image[None])[0])(x)
    assert torch.equal(found, grid_tree(x))


def test_operations_are_those_of_the_cosines():
    with FlopCounterMode(display=False) as counter:
        grid_tree(make_map(3, 4, channels=5))
    assert counter.get_total_flops() == 2 * 3 * (2 * 3 * 4 * 5)


def test_what_is_no_map_is_named():
    for x in (torch.ones(2, 3, 4), torch.ones(2, 0, 3, 4)):
        with pytest.raises(ValueError, match=r"^x has shape \(.*\); expected \(batch, height, width, channels\)"):
            grid_tree(x)


def test_the_public_function_runs_the_chosen_backend():
    x = make_map(4, 5).to(DEVICE)
    with use_backend("reference"):
        expected = grid_tree(x)
    assert torch.equal(grid_tree(x), expected)
