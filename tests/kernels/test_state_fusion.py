"""The fusion of states: plain torch against loops over positions, the kernels against plain torch."""

from __future__ import annotations

import pytest
import torch
from on_backends import device_of, require
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vssm_kernels import state_fusion, use_backend
from vssm_kernels.state_fusion import triton_fused
from vssm_kernels.state_fusion.arguments import FusionArguments
from vssm_kernels.testing import TOLERANCE, assert_close

NAMES = ("output", "gradient of states", "gradient of weight")


def make_inputs(
    batch: int = 2,
    height: int = 3,
    width: int = 5,
    channels: int = 3,
    dilations: int = 3,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, height, width, channels), (dilations, channels, 3, 3)
    return [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]


def loops(states: Tensor, weight: Tensor) -> Tensor:
    """The sum as it is written, position by position."""
    _, height, width, _ = states.shape
    rows = []
    for y in range(height):
        for x in range(width):
            total = 0
            for d in range(len(weight)):
                for i in range(3):
                    for j in range(3):
                        row = min(max(y + (2 * d + 1) * (i - 1), 0), height - 1)
                        column = min(max(x + (2 * d + 1) * (j - 1), 0), width - 1)
                        total = total + weight[d, :, i, j] * states[:, row, column]
            rows.append(total)
    return torch.stack(rows, 1).unflatten(1, (height, width))


def output_and_gradients(function, inputs: list[Tensor]) -> list[Tensor]:
    output = function(*inputs)
    gradient = torch.linspace(-1, 1, output.numel(), device=output.device).view(output.shape).to(output.dtype)
    return [output, *torch.autograd.grad(output, inputs, gradient)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("height, width, dilations", [(3, 5, 3), (1, 1, 2), (1, 7, 1), (8, 2, 3)])
def test_output_and_gradients_are_those_of_loops_in_float64(height, width, dilations, dtype):
    inputs = make_inputs(height=height, width=width, dilations=dilations, dtype=dtype)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    expected = output_and_gradients(loops, exact)
    for backend in ("convolutions", "reference"):
        with use_backend(backend):
            found = output_and_gradients(state_fusion, inputs)
        assert found[0].dtype == torch.promote_types(dtype, torch.float32)
        for name, one, want in zip(NAMES, found, expected, strict=True):
            assert_close(one, want, f"{name} by {backend}", tolerance=TOLERANCE[dtype])


# Small ones: Triton's interpreter takes long for a position.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "batch, height, width, channels, dilations", [(2, 1, 2, 3, 2), (1, 1, 1, 2, 1), (1, 1, 9, 70, 1), (0, 2, 2, 3, 3)]
)
def test_kernels_agree_with_plain_torch(batch, height, width, channels, dilations, dtype):
    backend = triton_fused.BACKEND
    inputs = make_inputs(batch, height, width, channels, dilations, dtype, device_of(backend))
    if batch:
        require(backend, FusionArguments(*inputs))
    with use_backend("triton" if batch else "convolutions"):
        found = output_and_gradients(state_fusion, inputs)
    with use_backend("reference"):
        expected = output_and_gradients(state_fusion, inputs)
    for name, one, want in zip(NAMES, found, expected, strict=True):
        assert one.dtype == want.dtype
        assert_close(one, want, name, tolerance=TOLERANCE[dtype])


def test_states_of_any_strides():
    states, weight = make_inputs(1, 1, 2, channels=4, dilations=1)
    view, part = states.detach().permute(0, 2, 1, 3)[..., ::2], weight.detach()[:, ::2]
    for backend in ("convolutions", "triton"):
        with use_backend(backend):
            assert_close(state_fusion(view, part), state_fusion(view.contiguous(), part.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_narrows_nothing(dtype):
    inputs = make_inputs()
    expected = output_and_gradients(state_fusion, inputs)
    compiled = torch.compile(state_fusion, fullgraph=True, backend="aot_eager")
    for op in (state_fusion, compiled):
        found = torch.autocast("cpu", dtype)(output_and_gradients)(op, inputs)
        for name, one, want in zip(NAMES, found, expected, strict=True):
            assert_close(one, want, name, tolerance=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("height, width, channels", [(56, 56, 128), (14, 9, 70), (7, 7, 1024)])
def test_on_a_gpu(height, width, channels, dtype):
    """At sizes of the models, and the same bits in every run."""
    inputs = make_inputs(8, height, width, channels, dtype=dtype, device="cuda")
    found, again = output_and_gradients(state_fusion, inputs), output_and_gradients(state_fusion, inputs)
    with use_backend("reference"), torch.backends.cudnn.flags(allow_tf32=False):
        expected = output_and_gradients(state_fusion, inputs)
    for name, one, same, want in zip(NAMES, found, again, expected, strict=True):
        assert_close(one, want, name, tolerance=TOLERANCE[dtype])
        assert torch.equal(one, same), f"{name} is another one in a second run"


@pytest.mark.gpu
def test_an_image_of_more_than_2_to_the_31_elements_on_gpu():
    """Its last rows, and their gradients, are those of a map of its last rows."""
    states = torch.randn(1, 2049, 1024, 1024, device="cuda")
    weight = make_inputs(channels=1024, device="cuda")[1].detach()
    results = []
    for given in (states, states[:, -24:].contiguous()):
        output = state_fusion(given.requires_grad_(), weight)
        results.append([output, *torch.autograd.grad(output, given, given.detach())])
    for name, one, want in zip(NAMES, *results, strict=False):
        assert_close(one[:, -12:], want[:, -12:], name, tolerance=1e-6)


def test_second_derivatives_forward_mode_and_vmap():
    inputs = make_inputs(1, 2, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(state_fusion, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(state_fusion, inputs)


def test_operations_are_those_of_convolutions():
    inputs = [each.detach().to("meta") for each in make_inputs()]
    with FlopCounterMode(display=False) as counter:
        assert state_fusion(*inputs).shape == (2, 3, 5, 3)
    assert counter.get_total_flops() == 2 * (2 * 3 * 5 * 3) * 3 * 9


@pytest.mark.parametrize(
    "states, weight, error, sentence",
    [
        ((3, 5, 3), (3, 3, 3, 3), ValueError, r"states have shape \(3, 5, 3\); expected \(batch, height, width"),
        ((2, 0, 5, 3), (3, 3, 3, 3), ValueError, "at least 1 x 1"),
        ((2, 3, 5, 4), (3, 3, 3, 3), ValueError, r"weight has shape \(3, 3, 3, 3\); expected \(dilations, 4, 3, 3\)"),
        ((2, 3, 5, 3), (0, 3, 3, 3), ValueError, r"expected \(dilations, 3, 3, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(states, weight, error, sentence):
    with pytest.raises(error, match=sentence):
        state_fusion(torch.zeros(states), torch.zeros(weight))
