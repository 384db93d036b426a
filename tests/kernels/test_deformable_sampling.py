"""Deformable sampling: plain torch against a sum over all positions, the kernels against plain torch."""

from __future__ import annotations

import pytest
import torch
from on_backends import DEVICE, device_of, require
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vssm_kernels import deformable_sampling, use_backend
from vssm_kernels.deformable_sampling import triton_fused
from vssm_kernels.deformable_sampling.arguments import SamplingArguments
from vssm_kernels.testing import TOLERANCE, assert_close

NAMES = ("output", "gradient of x", "gradient of what was predicted")


def make_inputs(
    batch: int = 2,
    height: int = 3,
    width: int = 5,
    channels: int = 6,
    groups: int = 2,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """With two numbers that are not read, as layers have that predict multiples of eight; offsets beyond small maps.

    Odd multiples of 1/32, exact in every dtype: never a whole number, where a sample's slope is that of either side.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, height, width, channels, generator=generator)
    predicted = 1.5 * torch.randn(batch, height, width, 27 * groups + 2, generator=generator)
    predicted = (16 * predicted.clamp(-3.9, 3.9)).floor() / 16 + 1 / 32
    return [each.to(device, dtype).requires_grad_() for each in (x, predicted)]


def loops(x: Tensor, predicted: Tensor, groups: int) -> Tensor:
    """Every position weighs every other by how near it is to a sample."""
    height, width = x.shape[1:3]
    rows, columns = torch.arange(height), torch.arange(width)
    outputs = []
    for group, values in enumerate(x.chunk(groups, -1)):
        numbers = predicted[..., 27 * group : 27 * group + 27]
        total = 0
        for k in range(9):
            column = columns + k // 3 - 1 + numbers[..., 2 * k]
            row = rows[:, None] + k % 3 - 1 + numbers[..., 2 * k + 1]
            by_column = (1 - (column[..., None] - columns).abs()).relu()
            by_row = (1 - (row[..., None] - rows).abs()).relu()
            total = total + numbers[..., 18 + k, None] * torch.einsum("bhwr,bhws,brsc->bhwc", by_row, by_column, values)
        outputs.append(total)
    return torch.cat(outputs, -1)


def output_and_gradients(function, inputs: list[Tensor], groups: int) -> list[Tensor]:
    output = function(*inputs, groups)
    gradient = torch.linspace(-1, 1, output.numel(), device=output.device).view(output.shape).to(output.dtype)
    return [output, *torch.autograd.grad(output, inputs, gradient)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("height, width, groups", [(3, 5, 2), (1, 1, 1), (1, 7, 3), (8, 2, 6)])
def test_output_and_gradients_are_those_of_loops_in_float64(height, width, groups, dtype):
    inputs = make_inputs(height=height, width=width, groups=groups, dtype=dtype)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    expected = output_and_gradients(loops, exact, groups)
    for backend in ("bags", "reference"):
        with use_backend(backend):
            found = output_and_gradients(deformable_sampling, inputs, groups)
        for name, one, want in zip(NAMES, found, expected, strict=True):
            assert one.dtype == dtype
            assert_close(one, want, f"{name} by {backend}")


# Small ones: Triton's interpreter takes long for a position.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "batch, height, width, channels, groups", [(2, 1, 3, 6, 2), (1, 1, 1, 2, 1), (1, 5, 1, 5, 1), (0, 2, 2, 4, 2)]
)
def test_kernels_agree_with_plain_torch(batch, height, width, channels, groups, dtype, monkeypatch):
    for name in ("READS", "ADDS"):
        monkeypatch.setattr(triton_fused, name, 16)  # so that an image takes several programs
    backend = triton_fused.BACKEND
    inputs = make_inputs(batch, height, width, channels, groups, dtype, device_of(backend))
    if batch:
        require(backend, SamplingArguments(*inputs, groups))
    with use_backend("triton" if batch else "bags"):
        found = output_and_gradients(deformable_sampling, inputs, groups)
    with use_backend("reference"):
        expected = output_and_gradients(deformable_sampling, inputs, groups)
    for name, one, want in zip(NAMES, found, expected, strict=True):
        assert one.dtype == want.dtype
        assert_close(one, want, name)


def by_triton(x: Tensor, predicted: Tensor, gradient: Tensor, groups: int = 1) -> list[Tensor]:
    """The output and the gradients."""
    require(triton_fused.BACKEND, SamplingArguments(x, predicted, groups))
    x, predicted = (each.detach().requires_grad_() for each in (x, predicted))
    with use_backend("triton"):
        output = deformable_sampling(x, predicted, groups)
    return [output.detach(), *torch.autograd.grad(output, (x, predicted), gradient)]


def test_the_order_of_additions_does_not_matter():
    """All read between the same four positions, and give to them in another order: not a bit changes."""
    x = torch.randn(1, 1, 8, 4, device=DEVICE)
    window = torch.arange(9, device=DEVICE)
    columns = 2.25 - torch.arange(8, device=DEVICE)[:, None] - (window // 3 - 1)
    rows = (0.5 - (window % 3 - 1)).expand(8, -1)
    predicted = torch.cat([torch.stack([columns, rows], -1).flatten(1), torch.rand(8, 9, device=DEVICE)], -1)
    predicted, gradient = predicted[None, None], torch.randn_like(x)
    _, forwards, _ = by_triton(x, predicted, gradient)
    order = torch.tensor([3, 7, 1, 0, 6, 2, 5, 4])
    moved = torch.cat([predicted[..., :18], predicted[:, :, order, 18:]], -1)
    _, backwards, _ = by_triton(x, moved, gradient[:, :, order])
    assert forwards.any() and torch.equal(forwards, backwards)


def test_gradients_of_any_size_keep_their_digits():
    """The units in which an image's are added up follow them."""
    x, predicted = (each.detach().expand(4, -1, -1, -1) for each in make_inputs(1, 1, 3, 2, 1, device=DEVICE))
    sizes = torch.tensor([1.0, 0.0, 1e-30, 1e30], device=DEVICE)[:, None, None, None]
    _, *found = by_triton(x, predicted, sizes.expand_as(x))
    for name, gradient in zip(NAMES[1:], found, strict=True):
        for one, size in zip(gradient, sizes, strict=True):
            assert_close(one, size * gradient[0].double(), name)


@pytest.mark.parametrize("backend", ["bags", "reference", "triton"])
@pytest.mark.parametrize("far", [1e3, -1e9, 1e30, -3e38])
def test_far_outside_of_the_map_is_zero(far, backend):
    x, predicted = (each.detach() for each in make_inputs(1, 2, 2, 2, 1, device=DEVICE))
    predicted[..., :18] = far
    with use_backend(backend):
        x.requires_grad_()
        output = deformable_sampling(x, predicted, 1)
        assert not output.any() and not torch.autograd.grad(output.sum(), x)[0].any()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(number):
    x, predicted = (each.detach() for each in make_inputs(4, 1, 3, 2, 1, device=DEVICE))
    gradient = torch.ones_like(x)
    predicted[0, 0, 1, 0] = number  # an offset
    predicted[1, 0, 1, 19] = number  # a weight
    gradient[2, 0, 1, 1] = number
    output, dx, dpredicted = by_triton(x, predicted, gradient)
    assert not output[:2, 0, 1].isfinite().any() and output[:2, 0, ::2].isfinite().all()
    assert not dpredicted[0, 0, 1, 1].isfinite() and dx[1:3].isnan().all()
    for found in (output[2:], dx[3], dpredicted[3]):  # it spoils no other image
        assert found.isfinite().all()


def test_inputs_of_any_strides():
    x, predicted = (each.detach() for each in make_inputs(1, 2, 2, channels=4))
    view, part = x.permute(0, 2, 1, 3)[..., ::2], predicted.permute(0, 2, 1, 3)[..., :54]
    for backend in ("bags", "triton"):
        with use_backend(backend):
            found = deformable_sampling(view, part, 2)
            assert_close(found, deformable_sampling(view.contiguous(), part.contiguous(), 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_narrows_nothing(dtype):
    inputs = make_inputs()
    expected = output_and_gradients(deformable_sampling, inputs, 2)
    compiled = torch.compile(deformable_sampling, fullgraph=True, backend="aot_eager")
    for op in (deformable_sampling, compiled):
        found = torch.autocast("cpu", dtype)(output_and_gradients)(op, inputs, 2)
        for name, one, want in zip(NAMES, found, expected, strict=True):
            assert_close(one, want, name, tolerance=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "height, width, channels, groups, dtype",
    [
        (56, 56, 64, 2, torch.bfloat16),
        (14, 9, 70, 5, torch.float32),
        (7, 7, 512, 16, torch.float16),
        (14, 9, 8, 2, torch.float64),
    ],
)
def test_on_a_gpu(height, width, channels, groups, dtype):
    """At sizes of the models, and the same bits in every run."""
    inputs = make_inputs(4, height, width, channels, groups, dtype, "cuda")
    found, again = (output_and_gradients(deformable_sampling, inputs, groups) for _ in "ab")
    with use_backend("reference"):
        expected = output_and_gradients(deformable_sampling, inputs, groups)
    for name, one, same, want in zip(NAMES, found, again, expected, strict=True):
        assert_close(one, want, name)
        assert torch.equal(one, same), f"{name} is another one in a second run"


def test_second_derivatives_forward_mode_and_vmap():
    inputs = [each.detach().requires_grad_() for each in make_inputs(1, 2, 2, 2, 1, dtype=torch.float64)]
    how = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(lambda *given: deformable_sampling(*given, 1), inputs, **how)
    assert torch.autograd.gradgradcheck(lambda *given: deformable_sampling(*given, 1), inputs)


def test_operations_are_nine_samples_between_four_positions():
    inputs = [each.detach().to("meta") for each in make_inputs()]
    with FlopCounterMode(display=False) as counter:
        assert deformable_sampling(*inputs, 2).shape == (2, 3, 5, 6)
    assert counter.get_total_flops() == 2 * (2 * 3 * 5 * 6) * 36


@pytest.mark.parametrize(
    "x, predicted, groups, sentence",
    [
        ((3, 5, 3), (3, 5, 27), 1, r"x has shape \(3, 5, 3\); expected \(batch, height, width"),
        ((2, 0, 5, 3), (2, 0, 5, 27), 1, "at least 1 x 1"),
        ((2, 3, 5, 4), (2, 3, 5, 81), 3, "3 groups share 4 channels; expected a number that divides them"),
        ((2, 3, 5, 4), (2, 3, 5, 27), 0, "0 groups share 4 channels"),
        ((2, 3, 5, 4), (2, 3, 5, 53), 2, r"predicted has shape \(2, 3, 5, 53\); expected .* 27 for each of 2 groups"),
        ((2, 3, 5, 4), (2, 5, 3, 54), 2, r"as x is \(2, 3, 5, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused(x, predicted, groups, sentence):
    with pytest.raises(ValueError, match=sentence):
        deformable_sampling(torch.zeros(x), torch.zeros(predicted), groups)
