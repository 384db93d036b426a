"""The weighted sum over directions, and means: plain torch against the formulas, the kernels against plain torch."""

import pytest
import torch
import torch.nn.functional as F
from on_backends import DEVICE, require
from torch import Tensor

from vssm_kernels import direction_means, use_backend, weighted_sum
from vssm_kernels.testing import TOLERANCE, assert_close
from vssm_kernels.weighted_sum import MEANS, OP, triton_fused
from vssm_kernels.weighted_sum.arguments import MeanArguments, WeightedArguments

NAMES = ("output", "gradient of y", "gradient of the weights", "gradient of z")


def make_inputs(batch=2, tokens=5, directions=3, channels=20, dtype=torch.float32, device="cpu", z_dtype=None):
    """y, weights and both halves of a projection."""
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, tokens, directions, channels), (batch, directions, channels), (batch, tokens, 2 * channels)
    y, weights, both = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    weights, both = weights.to(torch.promote_types(dtype, torch.float32)), both.to(z_dtype or dtype)
    return [tensor.requires_grad_() for tensor in (y, weights, both)]


def half(both: Tensor) -> Tensor:
    return both.chunk(2, dim=-1)[1]


def weigh(y, weights, both):
    return weighted_sum(y, weights, half(both))


def means(y, weights, both):
    return direction_means(y, half(both))


FUNCTIONS = {
    "weigh": weigh,
    "weigh without gate": lambda y, weights, both: weighted_sum(y, weights),
    "one weight for all channels": lambda y, weights, both: weighted_sum(y, weights[..., :1], half(both)),
    "means": means,
    "means without gate": lambda y, weights, both: direction_means(y),
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def output_and_gradients(function, inputs: list[Tensor]) -> list[Tensor | None]:
    output = function(*inputs)
    gradient = torch.linspace(-1, 1, output.numel(), device=output.device).view(output.shape).to(output.dtype)
    return [output, *torch.autograd.grad(output, inputs, gradient, allow_unused=True)]


def check(function, inputs: list[Tensor]) -> None:
    """The kernels' numbers against plain torch's, and the same bits in a second run."""
    require(triton_fused.BACKEND, WeightedArguments(*inputs[:2], half(inputs[2])))
    with use_backend("triton"):
        found, again = (output_and_gradients(function, inputs) for _ in "ab")
    with use_backend("reference"):
        expected = output_and_gradients(function, inputs)
    for name, one, same, want in zip(NAMES, found, again, expected, strict=True):
        assert (one is None) == (want is None)
        if want is not None:
            assert one.dtype == want.dtype
            assert_close(one, want, name)
            assert torch.equal(one, same), f"{name} is another one in a second run"


@every_function
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_formulas(function, dtype):
    y, weights, both = make_inputs(dtype=dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in (y, weights, both)]

    def weigh_formula(y, weights, both):
        gate, weights = F.silu(half(both)), weights[..., :1] if "one weight" in name else weights
        total = torch.einsum("btdc,bdc->btc", y, weights.expand(-1, -1, y.shape[-1]))
        return total if "without" in name else total * gate

    def mean_formula(y, weights, both):
        return (y if "without" in name else y * F.silu(half(both)).unsqueeze(2)).mean(1)

    name = next(name for name, other in FUNCTIONS.items() if other is function)
    expected = output_and_gradients(mean_formula if "means" in name else weigh_formula, exact)
    found = output_and_gradients(function, [y, weights, both])
    for what, one, want, given in zip(NAMES, found, expected, (y, y, weights, both), strict=True):
        if one is not None:
            assert one.dtype == given.dtype
            assert_close(one, want, what, TOLERANCE[dtype])


@every_function
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens, directions, channels", [(5, 3, 20), (9, 1, 7), (8, 4, 65), (1, 5, 1)])
def test_kernels_agree(function, tokens, directions, channels, dtype, poisoned_memory):
    check(function, make_inputs(2, tokens, directions, channels, dtype, DEVICE))


@every_function
def test_tokens_of_several_programs(function, monkeypatch, poisoned_memory):
    monkeypatch.setattr(triton_fused, "ROWS", 2)
    monkeypatch.setattr(triton_fused, "TURNS", 2)
    for op in (OP, MEANS):  # plans that were made under other sizes
        op.forget()
    check(function, make_inputs(2, 11, 2, 6, device=DEVICE))
    for op in (OP, MEANS):
        op.forget()


@pytest.mark.parametrize(
    "of_z",
    [lambda both: both[:, :, ::2], lambda both: half(both)[:1].expand(2, -1, -1), lambda both: half(both.flip(1))],
    ids=["every second channel", "one image for all", "copy"],
)
def test_any_strides(of_z):
    y, weights, both = make_inputs(device=DEVICE)
    y = y.movedim(1, 2).detach().contiguous().movedim(1, 2).requires_grad_()
    check(lambda y, weights, both: weighted_sum(y, weights, of_z(both)), [y, weights, both])
    check(lambda y, weights, both: direction_means(y, of_z(both)), [y, weights, both])


def test_a_gate_in_another_dtype():
    check(weigh, make_inputs(dtype=torch.bfloat16, z_dtype=torch.float32, device=DEVICE))


def test_no_images_give_none():
    y, weights, both = make_inputs(batch=0, device=DEVICE)
    assert weigh(y, weights, both).shape == (0, 5, 20)
    assert means(y, weights, both).shape == (0, 3, 20)


def test_sums_in_float32_and_float16_saturates():
    """256 + 1 is 256 in bfloat16: three directions of 256, 1 and 1 are not."""
    y = torch.tensor([256.0, 1.0, 1.0], dtype=torch.bfloat16, device=DEVICE).view(1, 1, 3, 1)
    assert weighted_sum(y, torch.ones(1, 3, 1, device=DEVICE)).item() == 258
    y = torch.tensor([6e4, -6e4], dtype=torch.float16, device=DEVICE).view(1, 2, 1, 1)
    assert weighted_sum(y, torch.full((1, 1, 1), 2.0, device=DEVICE)).flatten().tolist() == [65504, -65504]


@every_function
def test_compiles_and_has_shapes_on_the_meta_device(function):
    inputs = make_inputs()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_close(compiled(*inputs), function(*inputs))
    assert function(*(tensor.to("meta") for tensor in inputs)).shape == function(*inputs).shape


@pytest.mark.gpu
@every_function
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(8, 729, 3, 384), (4, 196, 4, 768), (2, 3136, 4, 192)], ids=str)
def test_model_sizes_on_gpu(function, shape, dtype):
    check(function, make_inputs(*shape, dtype, "cuda"))


def test_errors():
    y, weights, both = make_inputs()
    z = half(both)
    with pytest.raises(ValueError, match=r"y has shape \(2, 5, 3, 20\) and z \(2, 5, 40\); expected"):
        weighted_sum(y, weights, both)
    with pytest.raises(ValueError, match=r"y has shape \(2, 0, 3, 20\) and z None; .* at least one token"):
        direction_means(y[:, :0])
    with pytest.raises(ValueError, match=r"weights have shape \(2, 2, 20\); expected \(2, 3, 20\)"):
        weighted_sum(y, weights[:, :2], z)
    assert MeanArguments(y, None).check() is None
