"""Every op refuses integers, complex numbers and tensors of another device, in each of its tensors, by name; and keeps
none of them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from torch import Tensor

import vssm_kernels as kernels
from vssm_kernels.dispatch import registries
from vssm_kernels.op import Op

TREE = kernels.grid_tree(torch.zeros(1, 2, 2, 1))
ORDER = torch.arange(4, dtype=torch.int32)[None]

# By op: what is called with tensors of these shapes, and their names.
OPS: dict[str, tuple[Callable[..., object], dict[str, tuple[int, ...]]]] = {
    "selective_scan": (
        kernels.selective_scan,
        {
            "u": (1, 4, 3),
            "delta": (1, 4, 2, 1),
            "A": (2, 3, 5),
            "B": (1, 4, 2, 5),
            "C": (1, 4, 2, 5),
            "D": (2, 3),
            "delta_bias": (2, 3),
            "delta_weight": (2, 3, 1),
        },
    ),
    "ssd": (
        kernels.ssd,
        {
            "u": (1, 4, 2, 3),
            "delta": (1, 4, 1, 2),
            "A": (1, 2),
            "B": (1, 4, 1, 1, 5),
            "C": (1, 4, 1, 1, 5),
            "D": (1, 2),
            "delta_bias": (1, 2),
            "initial": (1, 1, 2, 3, 5),
        },
    ),
    "noncausal_ssd": (
        kernels.noncausal_ssd,
        {
            "u": (1, 4, 2, 3),
            "delta": (1, 4, 2),
            "A": (2,),
            "B": (1, 4, 5),
            "C": (1, 4, 5),
            "D": (2,),
            "delta_bias": (2,),
        },
    ),
    "causal_conv1d": (
        lambda x, weight, bias: kernels.causal_conv1d(x, weight, bias, ORDER),
        {"x": (1, 4, 3), "weight": (1, 3, 2), "bias": (1, 3)},
    ),
    "wavefront_scan": (
        kernels.wavefront_scan,
        {
            "u": (1, 2, 2, 3),
            "delta": (1, 2, 2, 2, 3),
            "A": (2, 3, 5),
            "B": (1, 2, 2, 2, 5),
            "C": (1, 2, 2, 5),
            "D": (3,),
            "delta_bias": (2, 3),
        },
    ),
    "tree_scan": (
        lambda **given: kernels.tree_scan(**given, tree=TREE),
        {"u": (1, 4, 3), "delta": (1, 4, 3), "A": (3,), "B": (1, 4), "delta_bias": (3,)},
    ),
    "grid_tree": (kernels.grid_tree, {"x": (1, 2, 2, 3)}),
    "state_fusion": (kernels.state_fusion, {"states": (1, 2, 2, 3), "weight": (1, 3, 3, 3)}),
    "deformable_sampling": (
        lambda x, predicted: kernels.deformable_sampling(x, predicted, 1),
        {"x": (1, 2, 2, 3), "predicted": (1, 2, 2, 27)},
    ),
    "readout": (kernels.readout, {"states": (1, 2, 4, 3), "C": (1, 4, 2), "D": (2, 3), "u": (1, 4, 3)}),
    "sum_gate": (kernels.sum_gate, {"y": (1, 4, 2, 3), "z": (1, 4, 3)}),
    "weighted_sum": (kernels.weighted_sum, {"y": (1, 4, 2, 3), "weights": (1, 2, 3), "z": (1, 4, 3)}),
    "direction_means": (kernels.direction_means, {"y": (1, 4, 2, 3), "z": (1, 4, 3)}),
    "sum_norm": (
        lambda x, weight, bias: kernels.sum_norm(x, weight, bias, eps=1e-5),
        {"x": (4, 3), "weight": (3,), "bias": (3,)},
    ),
}
TENSORS = [(op, name) for op, (_, shapes) in OPS.items() for name in shapes]


def tensors_of(op: str) -> tuple[Callable[..., object], dict[str, Tensor]]:
    function, shapes = OPS[op]
    return function, {name: torch.ones(shape) for name, shape in shapes.items()}


def test_every_op_is_here():
    assert {registry.name for registry in registries if isinstance(registry, Op)} == set(OPS)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_other_numbers_are_refused(op, name, dtype):
    function, given = tensors_of(op)
    function(**given)
    with pytest.raises(TypeError, match=rf"^{name} is {dtype}; expected a floating-point tensor"):
        function(**given | {name: given[name].to(dtype)})


@pytest.mark.parametrize(("op", "name"), [each for each in TENSORS if each[0] != "grid_tree"])
def test_arrays_are_refused(op, name):
    function, given = tensors_of(op)
    with pytest.raises(TypeError, match=rf"^{name} is a ndarray; expected a tensor"):
        function(**given | {name: given[name].numpy()})


def test_fractions_in_the_place_of_whole_numbers_are_refused():
    """The reference started anew where 2.5 divides the step."""
    scan, given = tensors_of("selective_scan")
    with pytest.raises(TypeError, match=r"^segment is 2\.5; expected a whole number"):
        scan(**given, segment=2.5)
    with pytest.raises(TypeError, match=r"^groups is 1\.0; expected a whole number"):
        kernels.sum_norm(torch.ones(4, 6), None, eps=1e-5, groups=1.0)


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, name in TENSORS if name != next(iter(OPS[op][1]))])
def test_a_tensor_of_another_device_is_refused(op, name):
    function, given = tensors_of(op)
    with pytest.raises(
        ValueError, match=rf"^{name} is on meta but {next(iter(given))} on cpu; move both to one device"
    ):
        function(**given | {name: given[name].to("meta")})


@pytest.mark.parametrize(
    "op", [registry for registry in registries if isinstance(registry, Op)], ids=lambda op: op.name
)
def test_no_tensor_is_kept(op):
    """By no backend's plans or reasons why it cannot run: caches of those are by kinds of arguments."""
    function, given = tensors_of(op.name)
    for tensor in given.values():
        tensor.requires_grad_()
    for backend in op.backends:
        with kernels.use_backend(backend.name), suppress(RuntimeError):  # where it cannot run
            output = function(**given)
            if output.is_floating_point():
                output.sum().backward()
    seen = [weakref.ref(tensor) for tensor in (*given.values(), output)]
    del given, tensor, output
    gc.collect()
    assert not any(reference() is not None for reference in seen)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, "float32"], ids=str)
def test_results_are_of_floating_point_numbers(dtype: object) -> None:
    """Whole numbers would be cut off, without a word."""
    told = "expected a floating-point one of torch's"
    with pytest.raises(TypeError, match=told):
        kernels.sum_norm(torch.randn(2, 3), None, eps=1e-5, dtype=dtype)
    function, shapes = OPS["selective_scan"]
    with pytest.raises(TypeError, match=told):
        function(**{name: torch.randn(shape) for name, shape in shapes.items()}, dtype=dtype)
