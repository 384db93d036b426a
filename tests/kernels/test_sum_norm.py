"""The norm of summed directions: the kernels, in Triton and in C, against plain torch, and that against the formula."""

from __future__ import annotations

import pytest
import torch

from vssm_kernels import sum_norm, use_backend
from vssm_kernels.dispatch import needs_gradient
from vssm_kernels.sum_norm import compiled, native_cpu, reference, triton_fused
from vssm_kernels.sum_norm.arguments import NormArguments
from vssm_kernels.testing import assert_close

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
CENTERED = pytest.mark.parametrize("center", [True, False], ids=["layer norm", "rms norm"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def make_arguments(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    center: bool = True,
    *,
    bias: bool = True,
    merge: bool = True,
    output: torch.dtype | None = None,
    parameters: torch.dtype = torch.float32,
    offset: float = 0.0,
    device: str = DEVICE,
) -> NormArguments:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) + offset).to(device, dtype)
    weight, shift = (torch.randn(shape[-1], generator=generator).to(device, parameters) for _ in range(2))
    return NormArguments(x, weight, shift if bias else None, 1e-5, center, output or dtype, merge)


def output_and_gradients(norm, args: NormArguments) -> dict[str, torch.Tensor]:
    """Of a random sum of the outputs, each in its own dtype."""
    given = {"x": args.x, "weight": args.weight, "bias": args.bias}
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in given.items() if tensor is not None}
    output = norm(args._replace(**leaves))
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    gradients = torch.autograd.grad(output, leaves.values(), gradient)
    return {"output": output, **{f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}}


def check(args: NormArguments, fast=triton_fused.norm) -> None:
    found, expected = (output_and_gradients(norm, args) for norm in (fast, reference.norm))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        # Weights in float32 still add up rows that were rounded to the dtype of x or of the output.
        tolerance = None if args.x.dtype == args.dtype == torch.float32 else 1e-2
        assert_close(tensor, expected[name], name, tolerance)
    with torch.no_grad():
        assert_close(fast(args), found["output"], "output without gradients")


@pytest.fixture
def c_norm():
    if (reason := native_cpu.BACKEND.why_not(None)) is not None:
        pytest.skip(reason)
    return native_cpu.norm


@DTYPES
@CENTERED
@pytest.mark.parametrize("shape", [(2, 9, 1, 96), (3, 11, 2, 384), (2, 7, 4, 97), (5, 9, 33)], ids=str)
def test_agrees_with_the_reference(shape, center, dtype):
    check(make_arguments(shape, dtype, center))


@pytest.mark.parametrize("center", [True, False])
def test_without_directions_or_bias_and_from_wide_to_narrow(center):
    """A float32 stream normed for a matrix product in bfloat16."""
    check(make_arguments((2, 19, 96), center=center, bias=False, merge=False, output=torch.bfloat16))
    check(make_arguments((2, 19, 96), torch.bfloat16, center, merge=False, parameters=torch.bfloat16))
    args = make_arguments((2, 19, 96), center=center, bias=False, merge=False)
    assert_close(triton_fused.norm(args._replace(weight=None)), reference.norm(args._replace(weight=None)))


def test_more_rows_than_one_tile_per_program(monkeypatch):
    monkeypatch.setattr(triton_fused, "_SHARES", 3)
    check(make_arguments((1, 37, 2, 700)))


@CENTERED
def test_any_strides(center):
    """Directions, tokens or channels that do not lie side by side are read where they are, or copied."""
    args = make_arguments((4, 3, 12, 2 * 48), center=center)
    for x in (
        args.x.permute(1, 2, 0, 3),  # directions outermost in memory
        args.x.movedim(0, 2)[:, ::2],
        args.x[:1, :1].expand(2, 3, 12, 96),
        args.x.transpose(-1, -2).contiguous().transpose(-1, -2),  # channels apart
    ):
        assert not x.is_contiguous()
        check(args._replace(x=x))
    halves = args.x.chunk(2, dim=-1)[1]
    check(NormArguments(halves, args.weight[:48], args.bias[:48], 1e-5, center, torch.float32, False))


def test_a_large_mean_does_not_swallow_the_variance():
    """In one pass, mean square minus squared mean, nothing would be left of it in float32."""
    args = make_arguments((2, 8, 384), merge=False, offset=1e4)
    exact = reference.norm(NormArguments(*(t.double() for t in args[:3]), 1e-5, True, torch.float64, False))
    assert_close(triton_fused.norm(args), exact.float(), tolerance=2e-3)  # float32 holds the mean to 1e-3
    assert_close(reference.norm(args), exact.float(), tolerance=2e-3)


def test_the_sum_is_rounded_as_the_scan_rounds_it():
    """1 + 2^-9 vanishes in bfloat16, so that these rows are constant and their norm zero."""
    x = torch.ones(3, 2, 64, dtype=torch.bfloat16, device=DEVICE)
    x[:, 1, ::2] = 2.0**-9
    x[:, 1, 1::2] = 0
    args = NormArguments(x, torch.ones(64, device=DEVICE), None, 1e-5, True, torch.float32, True)
    for norm in (triton_fused.norm, reference.norm):
        assert torch.equal(norm(args), torch.zeros(3, 64, device=DEVICE))


@CENTERED
def test_two_backwards_are_bit_equal(center):
    args = make_arguments((3, 50, 2, 96), center=center)
    one, other = (output_and_gradients(triton_fused.norm, args) for _ in range(2))
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_every_direction_shares_one_gradient():
    gradient = output_and_gradients(triton_fused.norm, make_arguments((2, 5, 4, 96)))["gradient of x"]
    assert gradient.stride(-2) == 0


def test_no_rows():
    found = output_and_gradients(triton_fused.norm, make_arguments((0, 2, 96)))
    assert found["output"].shape == (0, 96)
    assert torch.equal(found["gradient of weight"], torch.zeros(96, device=DEVICE))


@DTYPES
@CENTERED
@pytest.mark.parametrize("shape", [(2, 9, 1, 96), (3, 50, 2, 384), (2, 7, 4, 97), (5, 9, 7)], ids=str)
def test_c_agrees_with_the_reference(c_norm, shape, center, dtype):
    check(make_arguments(shape, dtype, center, device="cpu"), c_norm)
    check(make_arguments(shape, dtype, center, device="cpu", merge=False, bias=False, output=torch.bfloat16), c_norm)


@CENTERED
def test_c_takes_any_strides_and_no_weight(c_norm, center):
    args = make_arguments((4, 3, 12, 96), center=center, device="cpu")
    for x in (args.x.permute(1, 2, 0, 3), args.x[:1, :1].expand(2, 3, 12, 96), args.x.flip(-1).mT.contiguous().mT):
        check(args._replace(x=x), c_norm)
    bare = args._replace(weight=None, bias=None)
    assert_close(c_norm(bare), reference.norm(bare))


def test_c_keeps_the_variance_beside_a_large_mean(c_norm):
    args = make_arguments((2, 8, 384), merge=False, offset=1e4, device="cpu")
    exact = reference.norm(NormArguments(*(t.double() for t in args[:3]), 1e-5, True, torch.float64, False))
    assert_close(c_norm(args), exact.float(), tolerance=2e-3)


def test_c_gradients_do_not_depend_on_the_number_of_threads(c_norm):
    args = make_arguments((3, 50, 2, 96), device="cpu")
    threads = torch.get_num_threads()
    found = []
    for number in (1, 3):
        torch.set_num_threads(number)
        found.append(output_and_gradients(c_norm, args))
    torch.set_num_threads(threads)
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


def test_no_rows_on_a_cpu():
    assert sum_norm(torch.ones(0, 2, 96), torch.ones(96), eps=1e-5).shape == (0, 96)


@CENTERED
def test_gradcheck(center):
    args = make_arguments((2, 3, 2, 5), torch.float64, center, parameters=torch.float64)
    tensors = [tensor.requires_grad_() for tensor in args[:3]]
    assert torch.autograd.gradcheck(lambda *t: sum_norm(*t, eps=1e-5, center=center), tensors)


@CENTERED
def test_formula(center):
    args = make_arguments((2, 3, 2, 20), torch.float64, center, parameters=torch.float64)
    merged = args.x[:, :, 0] + args.x[:, :, 1]
    if center:
        merged = merged - merged.mean(-1, keepdim=True)
    expected = merged / (merged.square().mean(-1, keepdim=True) + 1e-5).sqrt() * args.weight + args.bias
    assert_close(sum_norm(*args[:3], eps=1e-5, center=center), expected)


def test_backends_can_be_forced():
    args = make_arguments((2, 5, 2, 96))
    expected = reference.norm(args)
    for name in ("triton", "reference"):
        with use_backend(name):
            assert_close(sum_norm(*args[:3], eps=1e-5), expected)
    meta = sum_norm(args.x.to("meta"), args.weight.to("meta"), eps=1e-5, dtype=torch.float16)
    assert meta.is_meta and meta.shape == (2, 5, 96) and meta.dtype == torch.float16


@CENTERED
@pytest.mark.parametrize("shape", [(2, 9, 1, 96), (3, 11, 2, 384), (2, 96)], ids=str)
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("operators", [True, False])
def test_compiled(shape, merge, center, operators, monkeypatch):
    """Our kernels as operators, which compilers see on a GPU, and plain torch."""

    def by_operator(args: NormArguments) -> torch.Tensor:
        return compiled._norm_by_operator(args, needs_gradient(*args.tensors()))

    monkeypatch.setattr(compiled, "norm", by_operator if operators else reference.norm)
    torch.compiler.reset()

    def compiled_norm(args: NormArguments) -> torch.Tensor:
        function = torch.compile(sum_norm, fullgraph=True, backend="aot_eager")
        return function(*args[:3], eps=args.eps, center=args.center, dtype=args.dtype, merge=args.merge)

    check(make_arguments(shape, center=center, bias=center, merge=merge), compiled_norm)


@pytest.mark.parametrize("merge", [True, False])
def test_operators_for_compilers(merge):
    args = make_arguments((9, 2, 96), torch.bfloat16, merge=merge)
    torch.library.opcheck(compiled._norm, (*args, False))
    leaves = [tensor.requires_grad_() for tensor in args[:3]]
    torch.library.opcheck(compiled._norm, (*leaves, *args[3:], True))


@pytest.mark.gpu
def test_compilers_see_our_layer_norm_on_a_gpu():
    args = make_arguments((2, 9, 4, 96), torch.bfloat16)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compile(sum_norm, backend=backend)(*args[:3], eps=args.eps)
    assert "vssm.sum_norm" in graphs[0].code


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(weight=torch.ones(7)), r"weight has shape \(7,\); expected \(96,\), the channels of x"),
        (dict(bias=torch.ones(2, 96)), r"bias has shape \(2, 96\); expected \(96,\)"),
        (dict(x=torch.ones(96)), r"of shape \(96,\); expected floats \(..., directions, channels\)"),
        (dict(x=torch.ones(2, 96).int()), "x is torch.int32"),
        (dict(eps=0.0), "eps is 0.0; expected a positive number"),
    ],
)
def test_errors(change, message):
    given = {"x": torch.ones(2, 96), "weight": torch.ones(96), "bias": None, "eps": 1e-5, **change}
    with pytest.raises(ValueError, match=message):
        sum_norm(**given)


@pytest.mark.gpu
@DTYPES
@CENTERED
@pytest.mark.parametrize("shape", [(8, 3136, 4, 96), (8, 196, 1, 384), (8, 49, 4, 768), (4, 730, 192)], ids=str)
def test_model_sizes_on_gpu(shape, center, dtype):
    args = make_arguments(shape, dtype, center, merge=len(shape) == 4)
    check(args)
    one, other = (output_and_gradients(triton_fused.norm, args) for _ in range(2))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements_on_gpu():
    rows = 2**31 // 96 + 1000
    x = torch.zeros(rows, 96, dtype=torch.bfloat16, device="cuda")
    x[-1000:] = torch.randn(1000, 96, device="cuda")
    args = NormArguments(x, torch.ones(96, device="cuda"), None, 1e-5, True, torch.bfloat16, False)
    assert_close(triton_fused.norm(args)[-1000:], reference.norm(args._replace(x=x[-1000:])))


@pytest.mark.gpu
def test_many_channels_on_gpu():
    check(make_arguments((64, 2, 5000)))


@pytest.mark.parametrize("backend", [reference.BACKEND, native_cpu.BACKEND, triton_fused.BACKEND], ids=lambda b: b.name)
def test_float16_sums_saturate(backend):
    """Directions whose sum is beyond float16 are normed as if it were the largest number."""
    device = DEVICE if backend is triton_fused.BACKEND else "cpu"
    x = torch.tensor([[6e4, -6e4, 1e4, 0], [6e4, -6e4, 1e4, 0]], dtype=torch.float16, device=device)[None]
    args = NormArguments(x, None, None, 1e-5, True, torch.float16, True)
    if (reason := backend.why_not(args)) is not None:
        pytest.skip(reason)
    held = torch.tensor([[65504.0, -65504.0, 2e4, 0]], device=device)
    assert_close(backend.forward(args), torch.nn.functional.layer_norm(held, (4,), eps=1e-5).half())
