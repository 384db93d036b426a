"""A fuzz of every op over torch's ambient modes, shapes, strides, options and dtypes, against torch without modes.

Kernels write to memory by address, so a mode that changed what an allocation returns would corrupt it. Run it under
AddressSanitizer and UBSan with the command in CONTRIBUTING.md; VSSM_FUZZ_CASES asks for more cases, VSSM_FUZZ_SEED for
others.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import pytest
import torch
from torch import Tensor

from vssm_kernels import (
    ScanTable,
    causal_conv1d,
    deformable_sampling,
    direction_means,
    grid_tree,
    readout,
    selective_scan,
    state_fusion,
    sum_gate,
    sum_norm,
    tree_scan,
    use_backend,
    wavefront_scan,
    weighted_sum,
)
from vssm_kernels.buffers import address
from vssm_kernels.gpu import why_no_triton
from vssm_kernels.testing import assert_close

CASES = int(os.environ.get("VSSM_FUZZ_CASES", "160"))
SEED = int(os.environ.get("VSSM_FUZZ_SEED", "0"))
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float64: 1e-9}


@contextmanager
def restored(setter: Callable, value: object, old: object) -> Iterator[None]:
    setter(value)
    try:
        yield
    finally:
        setter(old)


def threads(count: int) -> AbstractContextManager[None]:
    return restored(torch.set_num_threads, count, torch.get_num_threads())


# Each makes a context; those of inference have no gradients.
MODES: dict[str, Callable[[], AbstractContextManager]] = {
    "default bfloat16": lambda: restored(torch.set_default_dtype, torch.bfloat16, torch.get_default_dtype()),
    "default float64": lambda: restored(torch.set_default_dtype, torch.float64, torch.get_default_dtype()),
    "device meta": lambda: torch.device("meta"),
    "default device meta": lambda: restored(torch.set_default_device, "meta", None),
    "deterministic": lambda: restored(lambda on: torch.use_deterministic_algorithms(on, warn_only=True), True, False),
    "autocast bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "anomalies": lambda: torch.autograd.detect_anomaly(check_nan=False),
    "three threads": lambda: threads(3),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
}


class Maker:
    """Random sizes, tensors of random strides, and orders, from one seed."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = self.random.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64])
        self.leaves: list[Tensor] = []

    def size(self, *likely: int) -> int:
        return self.random.choice([*likely, self.random.randint(1, 40)])

    def tensor(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        """A leaf's values in memory that is contiguous, part of a wider one, permuted, or shared by a dimension."""
        kind = self.random.choice(["contiguous", "wider", "permuted", "shared", "every second"])
        dims = list(range(len(shape)))
        inner = list(shape)
        if kind == "wider":
            inner[-1] += 5
        elif kind == "every second":
            inner[-1] *= 2
        elif kind == "permuted":
            self.random.shuffle(dims)
            inner = [shape[dim] for dim in dims]
        elif kind == "shared":
            inner[self.random.randrange(len(shape))] = 1
        values = torch.randn(inner, generator=self.generator) * scale + shift
        values = values.to(dtype or self.dtype)
        if kind == "wider":
            values = values[..., 2 : 2 + shape[-1]]
        elif kind == "every second":
            values = values[..., ::2]
        elif kind == "permuted":
            values = values.permute([dims.index(dim) for dim in range(len(shape))])
        values = values.expand(shape).requires_grad_()
        self.leaves.append(values)
        return values

    def maybe(self, *shape: int, **how: object) -> Tensor | None:
        return self.tensor(*shape, **how) if self.random.random() < 0.7 else None

    def order(self, directions: int, tokens: int) -> ScanTable | Tensor:
        steps = self.random.choice([tokens, 1, tokens + 3])
        table = torch.randint(-1, tokens, (directions, steps), generator=self.generator)
        if self.random.random() < 0.5:
            table = torch.stack([torch.randperm(tokens, generator=self.generator) for _ in range(directions)])
        return ScanTable.of(table, tokens) if self.random.random() < 0.5 else table.int()

    @property
    def wide(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32


def a_scan(make: Maker) -> Callable[[], Tensor]:
    batch, tokens, directions = make.size(0, 1, 2), make.size(1, 5), make.size(1, 2, 4) % 7 + 1
    channels, state, rank = make.size(1, 16, 17), make.size(1, 2, 16), make.random.choice([None, 1, 3])
    rows = (batch, tokens, directions)
    u = make.tensor(batch, tokens, channels) if make.random.random() < 0.5 else make.tensor(*rows, channels)
    delta = make.tensor(*rows, rank or channels, scale=0.5)
    weight = None if rank is None else make.tensor(directions, channels, rank, dtype=make.wide)
    A = make.tensor(directions, channels, state, dtype=make.wide, scale=0.1, shift=-1.0)
    B = make.tensor(*rows, state)
    C = make.maybe(*rows, state)
    D = None if C is None else make.maybe(directions, channels, dtype=make.wide)
    bias = make.maybe(directions, channels, dtype=make.wide, shift=-1.0)
    order = make.order(directions, tokens) if make.random.random() < 0.8 else None
    how = {"segment": make.random.choice([None, None, 1, 3]), "merge": make.random.random() < 0.5}
    how["dtype"] = make.random.choice([None, make.wide])
    return lambda: selective_scan(u, delta, A, B, C, D, delta_bias=bias, delta_weight=weight, order=order, **how)


def a_convolution(make: Maker) -> Callable[[], Tensor]:
    batch, tokens, directions = make.size(0, 1, 2), make.size(1, 5), make.size(1, 2) % 5 + 1
    channels, width = make.size(1, 16, 17), make.random.choice([1, 3, 4, 17])
    x = make.tensor(batch, tokens, channels)
    weight = make.tensor(directions, channels, width, dtype=make.wide)
    bias = make.maybe(directions, channels, dtype=make.wide)
    order, silu = make.order(directions, tokens), make.random.random() < 0.5
    return lambda: causal_conv1d(x, weight, bias, order, silu=silu)


def a_wavefront(make: Maker) -> Callable[[], Tensor]:
    grid = (make.size(0, 1, 2), make.size(1, 3), make.size(1, 5))
    channels, state = make.size(1, 16, 17), make.size(1, 2, 16)
    u, delta = make.tensor(*grid, channels), make.tensor(*grid, 2, channels, scale=0.5)
    A = make.tensor(2, channels, state, dtype=make.wide, scale=0.1, shift=-1.0)
    B, C, D = make.tensor(*grid, 2, state), make.tensor(*grid, state), make.maybe(channels, dtype=make.wide)
    bias, reverse = make.maybe(2, channels, dtype=make.wide, shift=-1.0), make.random.random() < 0.5
    return lambda: wavefront_scan(u, delta, A, B, C, D, delta_bias=bias, reverse=reverse)


def a_gate(make: Maker) -> Callable[[], Tensor]:
    batch, tokens, directions, channels = make.size(0, 1, 2), make.size(1, 5), make.size(1, 2) % 5 + 1, make.size(16)
    y, z = make.tensor(batch, tokens, directions, channels), make.maybe(batch, tokens, channels)
    scale = make.random.choice([1.0, 0.5])
    return lambda: sum_gate(y, z, scale)


def a_weighted_sum(make: Maker) -> Callable[[], Tensor]:
    batch, tokens, directions, channels = make.size(0, 1, 2), make.size(1, 5), make.size(1, 2) % 5 + 1, make.size(16)
    y, z = make.tensor(batch, tokens, directions, channels), make.maybe(batch, tokens, channels)
    weights = make.tensor(batch, directions, make.random.choice([1, channels]), dtype=make.wide)
    return lambda: weighted_sum(y, weights, z)


def a_mean(make: Maker) -> Callable[[], Tensor]:
    batch, tokens, directions, channels = make.size(1, 2), make.size(1, 5), make.size(1, 2) % 5 + 1, make.size(16)
    y, z = make.tensor(batch, tokens, directions, channels), make.maybe(batch, tokens, channels)
    return lambda: direction_means(y, z)


def a_norm(make: Maker) -> Callable[[], Tensor]:
    merge, channels = make.random.random() < 0.6, make.size(16, 17)
    shape = [make.size(1, 2, 5) for _ in range(make.random.randint(0, 3))]
    x = make.tensor(*shape, *[make.size(1, 2) % 5 + 1] * merge, channels)
    weight, bias = (make.maybe(channels, dtype=make.wide) for _ in range(2))
    center, dtype = make.random.random() < 0.5, make.random.choice([None, torch.float32, torch.bfloat16])
    groups = 2 if channels % 2 == 0 else 1
    # Constant rows have no direction: their gradients are noise over the root of eps.
    return lambda: sum_norm(x, weight, bias, eps=1e-1, center=center, dtype=dtype, merge=merge, groups=groups)


def a_fusion(make: Maker) -> Callable[[], Tensor]:
    grid, channels = (make.size(0, 1, 2), make.size(1, 5), make.size(1, 2)), make.size(1, 16)
    states, weight = (
        make.tensor(*grid, channels),
        make.tensor(make.random.randint(1, 3), channels, 3, 3, dtype=make.wide),
    )
    return lambda: state_fusion(states, weight)


def a_readout(make: Maker) -> Callable[[], Tensor]:
    batch, directions, tokens, channels = make.size(0, 1, 2), make.size(1, 2) % 5 + 1, make.size(1, 5), make.size(16)
    states, C = (
        make.tensor(batch, directions, tokens, channels, dtype=make.wide),
        make.tensor(batch, tokens, directions),
    )
    D, u = make.tensor(directions, channels, dtype=make.wide), make.tensor(batch, tokens, channels)
    return lambda: readout(states, C, D, u)


def a_sampling(make: Maker) -> Callable[[], Tensor]:
    grid, groups = (make.size(0, 1, 2), make.size(1, 5) % 9 + 1, make.size(1, 2) % 9 + 1), make.random.randint(1, 3)
    x = make.tensor(*grid, groups * make.size(1, 16))
    predicted = make.tensor(*grid, 27 * groups + make.size(1) % 9)
    return lambda: deformable_sampling(x, predicted, groups)


def a_tree(make: Maker) -> Callable[[], Tensor]:
    batch, height, width, channels = make.size(0, 1, 2), make.size(1, 5) % 9 + 1, make.size(1, 4) % 9 + 1, make.size(16)
    rows = batch, height * width
    tree = grid_tree(torch.randn(batch, height, width, 4, generator=make.generator))
    u, delta, B = make.tensor(*rows, channels), make.tensor(*rows, channels, scale=0.5, shift=-2.0), make.tensor(*rows)
    A, bias = (make.tensor(channels, dtype=make.wide, scale=0.1, shift=-1.0) for _ in range(2))
    return lambda: tree_scan(u, delta, A, B, bias, tree)


# Backends that are not the first choice here; of Triton's, which are interpreted, those that take no walk for long.
OTHERS = {a_scan: "grouped", a_gate: "triton", a_weighted_sum: "triton", a_mean: "triton", a_readout: "triton"}
OPS = [
    a_scan, a_convolution, a_wavefront, a_gate, a_weighted_sum, a_mean, a_norm, a_fusion, a_readout, a_sampling, a_tree,
]  # fmt: skip


def output_and_gradients(run: Callable[[], Tensor], leaves: list[Tensor], gradient: Tensor | None) -> list[Tensor]:
    output = run()
    if gradient is None or not output.requires_grad:
        return [output]
    return [output, *torch.autograd.grad(output, leaves, gradient.to(output.dtype))]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_no_mode_changes_a_number(op: Callable[[Maker], Callable[[], Tensor]]) -> None:
    for number in range(CASES // len(OPS)):
        seed = 10_000 * SEED + number
        make = Maker(seed)
        run = op(make)
        with torch.no_grad(), use_backend("reference"):
            shape = run().shape
        gradient = torch.randn(shape, generator=make.generator)
        with use_backend("reference"):
            expected = output_and_gradients(run, make.leaves, gradient)
        modes = make.random.sample(list(MODES), make.random.randint(1, 3))
        other = OTHERS.get(op) if make.random.random() < 0.3 else None
        possible = other != "triton" or why_no_triton(*make.leaves) is None
        backend = use_backend(other) if other and possible and shape.numel() else nullcontext()
        with ExitStack() as stack:
            stack.enter_context(backend)
            for mode in modes:
                stack.enter_context(MODES[mode]())
            found = output_and_gradients(run, make.leaves, gradient)
        assert len(found) == (1 if {"inference", "no gradients"} & set(modes) else len(expected))
        for index, (one, want) in enumerate(zip(found, expected, strict=False)):
            assert one.dtype == want.dtype and one.device == want.device
            label = f"seed {seed}, {op.__name__} in {make.dtype} under {modes}, result {index}"
            assert_close(one, want, label, TOLERANCE[make.dtype] if index or op is not a_norm else 3e-2)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(4, dtype=torch.float64),
        torch.zeros(4, dtype=torch.bfloat16),
        torch.zeros(4, device="meta"),
        torch.zeros(3),
        torch.zeros(8)[::2],
    ],
    ids=["float64", "bfloat16", "meta", "too small", "not contiguous"],
)
def test_memory_that_is_not_what_C_takes_it_for_is_refused(wrong):
    assert address("x", torch.zeros(4), 4) and address("x", None, 4) is None
    with pytest.raises(TypeError, match=r"x is torch\.\w+ of shape .* the C kernel takes 4 numbers of torch\.float32"):
        address("x", wrong, 4)


def test_rows_with_strides_of_their_own():
    wider = torch.zeros(3, 8)
    assert address("x", wider[:, :4], 12, rows=True) == wider.data_ptr()
    with pytest.raises(TypeError, match="contiguous rows, on the CPU"):
        address("x", wider[:, ::2], 12, rows=True)
