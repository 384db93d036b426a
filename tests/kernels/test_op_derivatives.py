"""Every way in which torch differentiates or transforms: each op gives what its reference gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from on_backends import DEVICE
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from vssm_kernels import (
    ScanTable,
    causal_conv1d,
    deformable_sampling,
    direction_means,
    grid_tree,
    noncausal_ssd,
    readout,
    selective_scan,
    ssd,
    standard_operations,
    state_fusion,
    sum_gate,
    sum_norm,
    tree_scan,
    use_backend,
    wavefront_scan,
    weighted_sum,
)
from vssm_kernels.testing import assert_close

ORDER = ScanTable.of(torch.tensor([[0, 1, 2, 3, 4, -1], [4, 3, -1, 2, 2, 0]]), 5, DEVICE)


TREE = grid_tree(torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))).to(DEVICE)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


# name: (function of tensors, their shapes); the scan's A is minus the exponential of what is given.
OPS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "scan": (
        lambda u, delta, A, B, C, D, bias, weight: selective_scan(
            u, delta, -A.exp(), B, C, D, delta_bias=bias, delta_weight=weight, order=ORDER, segment=4, merge=True
        ),
        [(2, 5, 3), (2, 5, 2, 1), (2, 3, 2), (2, 5, 2, 2), (2, 5, 2, 2), (2, 3), (2, 3), (2, 3, 1)],
    ),
    "states": (
        lambda u, delta, A, B: selective_scan(u, delta, -A.exp(), B, None, order=ORDER),
        [(2, 5, 2, 3), (2, 5, 2, 3), (2, 3, 2), (2, 5, 2, 2)],
    ),
    "convolution": (
        lambda x, weight, bias: causal_conv1d(x, weight, bias, ORDER, silu=True),
        [(2, 5, 3), (2, 3, 4), (2, 3)],
    ),
    "duality": (
        lambda u, delta, A, B, C, D, bias, initial: ssd(
            u, delta, -A.exp(), B, C, D, delta_bias=bias, initial=initial, order=ORDER, merge=True
        ),
        [(2, 5, 4, 3), (2, 5, 2, 4), (2, 4), (2, 5, 2, 2, 2), (2, 5, 2, 2, 2), (2, 4), (2, 4), (2, 2, 4, 3, 2)],
    ),
    "shifted duality": (
        lambda u, delta, A, B, C: ssd(u, delta, -A.exp(), B, C, order=ORDER, shift=True),
        [(2, 5, 2, 4, 3), (2, 5, 2, 4), (2, 4), (2, 5, 2, 2, 2), (2, 5, 2, 2, 2)],
    ),
    "non-causal duality": (noncausal_ssd, [(2, 5, 3, 4), (2, 5, 3), (3,), (2, 5, 2), (2, 5, 2), (3,), (3,)]),
    "wavefront": (
        lambda u, delta, A, B, C, D, bias: wavefront_scan(u, delta, -A.exp(), B, C, D, delta_bias=bias, reverse=True),
        [(2, 2, 3, 3), (2, 2, 3, 2, 3), (2, 3, 2), (2, 2, 3, 2, 2), (2, 2, 3, 2), (3,), (2, 3)],
    ),
    "sampling": (lambda x, predicted: deformable_sampling(x, predicted, 2), [(1, 2, 3, 4), (1, 2, 3, 56)]),
    "fusion": (state_fusion, [(2, 3, 4, 2), (2, 2, 3, 3)]),
    "readout": (readout, [(2, 2, 5, 3), (2, 5, 2), (2, 3), (2, 5, 3)]),
    "tree": (
        lambda u, delta, A, B, bias: tree_scan(u, delta, -A.exp(), B, bias, TREE.expand(len(u), -1, -1)),
        [(2, 6, 3), (2, 6, 3), (3,), (2, 6), (3,)],
    ),
    "gate": (lambda y, z: sum_gate(y, z, 0.5), [(2, 5, 3, 4), (2, 5, 4)]),
    "gate of one direction": (sum_gate, [(2, 5, 1, 4), (2, 5, 4)]),
    "sum": (lambda y: sum_gate(y * y, None, 0.5), [(2, 5, 3, 4)]),
    "weighted sum": (weighted_sum, [(2, 5, 3, 4), (2, 3, 4), (2, 5, 4)]),
    "means": (direction_means, [(2, 5, 3, 4), (2, 5, 4)]),
    "norm": (lambda x, weight, bias: sum_norm(x, weight, bias, eps=1e-5, merge=True), [(2, 5, 3, 4), (4,), (4,)]),
    "rms norm": (lambda x, weight: sum_norm(x, weight, eps=1e-5, center=False, merge=True), [(2, 5, 3, 4), (4,)]),
    "norm of groups": (lambda x, weight, bias: sum_norm(x, weight, bias, eps=1e-5, groups=2), [(2, 5, 6), (6,), (6,)]),
    "plain norm": (lambda x, weight, bias: sum_norm(x, weight, bias, eps=1e-5), [(2, 5, 4), (4,), (4,)]),
}
every_op = pytest.mark.parametrize("name", OPS)


def leaves(name: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    op, shapes = OPS[name]
    return op, [normal(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]


def both_ways(run: Callable[[], list[Tensor]]) -> None:
    """The same numbers from the backend that is chosen, and from plain operations of torch."""
    found = run()
    with use_backend("reference"):
        expected = run()
    for number, (one, want) in enumerate(zip(found, expected, strict=True)):
        assert_close(one, want, f"result {number}")


@every_op
def test_numbers_that_torch_negates_when_they_are_read(name):
    """As those of the imaginary part of a conjugate are."""
    op, tensors = leaves(name)

    def run(negated: Callable[[Tensor], Tensor]) -> list[Tensor]:
        output = op(*map(negated, tensors))
        return [output, *torch.autograd.grad(output, tensors, negated(normal(*output.shape, seed=9)))]

    for number, (one, want) in enumerate(
        zip(run(lambda tensor: torch._neg_view(-tensor)), run(lambda tensor: tensor), strict=True)
    ):
        assert_close(one, want, f"result {number}")


@every_op
def test_second_derivatives(name):
    """The gradient of a gradient's norm, and of the output too, by all that the op is given."""
    op, tensors = leaves(name)

    def run():
        output = op(*tensors)
        gradients = torch.autograd.grad(output.square().sum(), tensors, create_graph=True)
        penalty = sum(gradient.square().sum() for gradient in gradients)
        return [*gradients, *torch.autograd.grad(penalty + output.sum(), tensors)]

    both_ways(run)


@every_op
def test_second_derivatives_of_a_part(name):
    """By the first tensor alone, which a backend may have summed over directions before it saved it."""
    op, tensors = leaves(name)

    def run():
        (gradient,) = torch.autograd.grad(op(*tensors).square().sum(), tensors[:1], create_graph=True)
        return list(torch.autograd.grad(gradient.square().sum(), tensors, allow_unused=True, materialize_grads=True))

    both_ways(run)


@pytest.mark.parametrize("name", [name for name in OPS if name not in ("norm", "plain norm")])
def test_third_derivatives(name):
    """Not of layer norms: torch's own are wrong (2.15), and they are the reference."""
    op, tensors = leaves(name)
    first = tensors[0]

    def run():
        (one,) = torch.autograd.grad(op(*tensors).square().sum(), first, create_graph=True)
        (two,) = torch.autograd.grad(one.square().sum(), first, create_graph=True)
        return list(torch.autograd.grad(two.square().sum(), first))

    both_ways(run)


@every_op
def test_under_activation_checkpointing(name):
    op, tensors = leaves(name)

    def run():
        output = torch.utils.checkpoint.checkpoint(op, *tensors, use_reentrant=False)
        return [output, *torch.autograd.grad(output.square().sum(), tensors)]

    both_ways(run)


@every_op
def test_forward_mode(name):
    op, tensors = leaves(name)
    tangents = [normal(*tensor.shape, seed=10 + i) for i, tensor in enumerate(tensors)]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(tensor, tangent) for tensor, tangent in zip(tensors, tangents, strict=True)]
        output, found = forward_ad.unpack_dual(op(*duals))
    _, by_func = torch.func.jvp(op, tuple(tensor.detach() for tensor in tensors), tuple(tangents))
    cotangent = normal(*output.shape, seed=30)
    gradients = torch.autograd.grad(op(*tensors), tensors, cotangent)
    along = sum((gradient * tangent).sum() for gradient, tangent in zip(gradients, tangents, strict=True))
    assert_close(found, by_func)
    assert_close((found * cotangent).sum(), along, tolerance=1e-4)


@every_op
def test_vmap_and_functional_gradients(name):
    op, tensors = leaves(name)
    tensors = [tensor.detach() for tensor in tensors]
    stacked = torch.stack([tensors[0], 2 * tensors[0]])
    found = torch.func.vmap(lambda first: op(first, *tensors[1:]))(stacked)
    assert_close(found[1], op(stacked[1], *tensors[1:]))

    def loss(first):
        return op(first, *tensors[1:]).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss))(stacked)
    leaf = stacked[1].clone().requires_grad_()
    assert_close(per_sample[1], torch.autograd.grad(loss(leaf), leaf)[0])
    hessian = torch.func.hessian(loss)(tensors[0])
    assert hessian.shape == tensors[0].shape * 2 and torch.isfinite(hessian).all()


@every_op
def test_transforms_under_autocast(name):
    """It rounds no matrix product of the reference: the same numbers to the last digit."""
    op, tensors = leaves(name)
    given = [tensor.detach() for tensor in tensors]

    def run():
        one = torch.func.vmap(lambda first: op(first, *given[1:]))(given[0][None])
        return [one, *torch.func.jvp(op, tuple(given), tuple(given))]

    expected = run()
    with torch.autocast(DEVICE, torch.bfloat16):
        found = run()
    for one, want in zip(found, expected, strict=True):
        assert one.dtype == want.dtype and torch.equal(one, want)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
@every_op
def test_standard_operations_under_autocast(name):
    """A file for other programs, made inside autocast, computes as the op does."""
    op, tensors = leaves(name)
    given = tuple(tensor.detach() for tensor in tensors)
    with standard_operations():
        expected = torch.jit.trace(op, given, check_trace=False)(*given)
        with torch.autocast(DEVICE, torch.bfloat16):
            traced = torch.jit.trace(op, given, check_trace=False)
    found = traced(*given)
    assert found.dtype == expected.dtype and torch.equal(found, expected)


@every_op
def test_batched_gradients(name):
    """torch.autograd.functional.jacobian with vectorize hands a backward many gradients at once."""
    op, tensors = leaves(name)
    tensors = [tensor.detach() for tensor in tensors]

    def function(first):
        output = op(first, *tensors[1:]).flatten()
        return output[:: len(output) // 3]  # a few from everywhere: each is a backward pass of its own

    slow = torch.autograd.functional.jacobian(function, tensors[0])
    assert_close(torch.autograd.functional.jacobian(function, tensors[0], vectorize=True), slow)


class SeesOperators(TorchDispatchMode):
    """A mode, as selective checkpointing, counters of operations and loggers use."""

    def __init__(self):
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(str(func))
        return func(*args, **(kwargs or {}))


@every_op
def test_second_derivatives_under_a_mode(name):
    """Which sees operators instead of memory: the scan and the convolution in one piece."""
    op, tensors = leaves(name)

    def run():
        (gradient,) = torch.autograd.grad(op(*tensors).square().sum(), tensors[0], create_graph=True)
        return [gradient, *torch.autograd.grad(gradient.square().sum(), tensors[0])]

    with use_backend("reference"):
        expected = run()
    with SeesOperators() as mode:
        found = run()
    for one, want in zip(found, expected, strict=True):
        assert_close(one, want)
    whole = {
        "scan": "vssm.selective_scan",
        "states": "vssm.selective_scan",
        "convolution": "vssm.causal_conv1d",
        "wavefront": "vssm.wavefront_scan",
    }
    if name in whole:
        assert f"{whole[name]}.default" in mode.seen
