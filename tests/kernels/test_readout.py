"""The readout of states: plain torch against the formula, the kernels against plain torch."""

import pytest
import torch
from on_backends import DEVICE, require
from torch import Tensor

from vssm_kernels import readout, shares, use_backend
from vssm_kernels.readout import OP, triton_fused
from vssm_kernels.readout.arguments import ReadoutArguments
from vssm_kernels.testing import TOLERANCE, assert_close

NAMES = ("output", "gradient of states", "gradient of C", "gradient of D", "gradient of u")


def make_inputs(batch=2, directions=2, tokens=5, channels=20, dtype=torch.float32, device="cpu"):
    """States and D in float32 at least, as a scan's are; C is a part of wider rows, as of a projection."""
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (batch, directions, tokens, channels),
        (batch, tokens, 2 * directions),
        (directions, channels),
        (batch, tokens, channels),
    )
    states, C, D, u = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    wide = torch.promote_types(dtype, torch.float32)
    return [tensor.requires_grad_() for tensor in (states.to(wide), C[..., directions:], D.to(wide), u)]


def formula(states, C, D, u):
    return torch.einsum("bktc,btk->btc", states, C) + torch.einsum("kc,btc->btc", D, u)


def output_and_gradients(function, inputs: list[Tensor]) -> list[Tensor]:
    output = function(*inputs)
    gradient = torch.linspace(-1, 1, output.numel(), device=output.device).view(output.shape).to(output.dtype)
    return [output, *torch.autograd.grad(output, inputs, gradient)]


def check(inputs: list[Tensor]) -> None:
    """The kernels' numbers against plain torch's, and the same bits in a second run."""
    require(triton_fused.BACKEND, ReadoutArguments(*inputs))
    with use_backend("triton"):
        found, again = (output_and_gradients(readout, inputs) for _ in "ab")
    with use_backend("reference"):
        expected = output_and_gradients(readout, inputs)
    for name, one, same, want in zip(NAMES, found, again, expected, strict=True):
        assert one.dtype == want.dtype
        assert_close(one, want, name, TOLERANCE[inputs[-1].dtype])
        assert torch.equal(one, same), f"{name} is another one in a second run"


@pytest.mark.parametrize("backend", ["recomputing", "reference"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_formula(backend, dtype):
    inputs = make_inputs(dtype=dtype)
    expected = output_and_gradients(formula, [tensor.detach().double().requires_grad_() for tensor in inputs])
    with use_backend(backend):
        found = output_and_gradients(readout, inputs)
    for name, one, want, given in zip(NAMES, found, expected, (inputs[-1], *inputs), strict=True):
        assert one.dtype == given.dtype
        assert_close(one, want, name, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("directions, tokens, channels", [(2, 5, 20), (1, 9, 7), (4, 3, 130), (1, 1, 1)])
def test_kernels_agree(directions, tokens, channels, dtype, poisoned_memory):
    check(make_inputs(2, directions, tokens, channels, dtype, DEVICE))


def test_rows_of_several_programs(monkeypatch, poisoned_memory):
    monkeypatch.setattr(shares, "ROWS_TILE", 16)
    monkeypatch.setattr(shares, "PROGRAMS_MAX", 3)
    OP.forget()  # plans that were made under other sizes
    check(make_inputs(3, 2, 7, 6, device=DEVICE))
    OP.forget()


def test_any_strides():
    states, C, D, u = make_inputs(device=DEVICE)
    states = states.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    C = C.detach()[:1].expand(2, -1, -1).requires_grad_()
    u = u.detach().repeat(1, 1, 2)[..., ::2].requires_grad_()
    check([states, C, D, u])


def test_nothing_gives_nothing():
    assert readout(*make_inputs(batch=0, device=DEVICE)).shape == (0, 5, 20)


def test_sums_in_float32_and_float16_saturates():
    """256 + 1 is 256 in bfloat16: two directions of 256 and 1, and a skip of 1, are not."""
    states, one = torch.tensor([256.0, 1.0], device=DEVICE).view(1, 2, 1, 1), torch.ones(1, 1, 1, device=DEVICE)
    C, D = torch.ones(1, 1, 2, device=DEVICE), torch.tensor([[0.5], [0.5]], device=DEVICE)
    assert readout(states, C, D, one.bfloat16()).item() == 258
    assert readout(1e6 * states, C, D, one.half()).item() == 65504


def test_compiles_and_has_shapes_on_the_meta_device():
    inputs = make_inputs()
    compiled = torch.compile(readout, fullgraph=True, backend="aot_eager")
    assert_close(compiled(*inputs), readout(*inputs))
    assert readout(*(tensor.to("meta") for tensor in inputs)).shape == (2, 5, 20)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(8, 1, 3136, 128), (4, 4, 196, 768), (2, 2, 49, 1536)], ids=str)
def test_model_sizes_on_gpu(shape, dtype):
    check(make_inputs(*shape, dtype, "cuda"))


@pytest.mark.parametrize("name", ["C", "D", "u"])
def test_shapes_that_do_not_fit_are_named(name):
    args = ReadoutArguments(*make_inputs())
    with pytest.raises(ValueError, match=rf"^{name} has shape \(.*\); expected \(.*, as states are \(2, 2, 5, 20\)"):
        readout(*args._replace(**{name: getattr(args, name)[..., 1:]}))
    with pytest.raises(ValueError, match=r"states have shape \(2, 2, 5\); expected \(batch, directions, tokens"):
        readout(*args._replace(states=args.states[..., 0]))
