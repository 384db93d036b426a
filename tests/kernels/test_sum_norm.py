"""The norm of summed directions: the kernels, in Triton and in C, against plain torch, and that against the formula."""

from __future__ import annotations

import pytest
import torch
from on_backends import DEVICE, device_of, require

from vssm_kernels import add_norm, shares, sum_norm, use_backend
from vssm_kernels.sum_norm import OP, native_cpu, reference, triton_fused
from vssm_kernels.sum_norm.arguments import NormArguments
from vssm_kernels.testing import assert_close

FAST = pytest.mark.parametrize("backend", [native_cpu.BACKEND, triton_fused.BACKEND], ids=lambda backend: backend.name)
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
    groups: int = 1,
    device: str = DEVICE,
) -> NormArguments:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) + offset).to(device, dtype)
    weight, shift = (torch.randn(shape[-1], generator=generator).to(device, parameters) for _ in range(2))
    return NormArguments(x, weight, shift if bias else None, 1e-5, center, output or dtype, merge, groups)


def run(args: NormArguments) -> torch.Tensor:
    return sum_norm(*args.tensors(), **{name: getattr(args, name) for name in args._fields[3:]})


def output_and_gradients(args: NormArguments, backend: str, run=run) -> dict[str, torch.Tensor]:
    """Of a random sum of the outputs, each in its own dtype."""
    given = {"x": args.x, "weight": args.weight, "bias": args.bias}
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in given.items() if tensor is not None}
    with use_backend(backend):
        output = run(args._replace(**leaves))
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    gradients = torch.autograd.grad(output, leaves.values(), gradient)
    return {"output": output, **{f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}}


def check(args: NormArguments, backend=triton_fused.BACKEND, run=run) -> None:
    require(backend, args)
    found, expected = output_and_gradients(args, backend.name, run), output_and_gradients(args, "reference")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        # Weights in float32 still add up rows that were rounded to the dtype of x or of the output.
        tolerance = None if args.x.dtype == args.dtype == torch.float32 else 1e-2
        assert_close(tensor, expected[name], name, tolerance)
    with torch.no_grad(), use_backend(backend.name):
        assert_close(run(args), found["output"], "output without gradients")


def output(backend, args: NormArguments) -> torch.Tensor:
    require(backend, args)
    return backend.forward(args, False)[0]


@FAST
@DTYPES
@CENTERED
@pytest.mark.parametrize("shape", [(2, 9, 1, 96), (3, 50, 2, 384), (2, 7, 4, 97), (5, 9, 33)], ids=str)
def test_agrees_with_the_reference(backend, shape, center, dtype):
    check(make_arguments(shape, dtype, center, device=device_of(backend)), backend)


@FAST
@CENTERED
def test_without_directions_or_bias_and_from_wide_to_narrow(backend, center):
    """A float32 stream normed for a matrix product in bfloat16."""
    where = {"center": center, "merge": False, "device": device_of(backend)}
    check(make_arguments((2, 19, 96), bias=False, output=torch.bfloat16, **where), backend)
    check(make_arguments((2, 19, 96), torch.bfloat16, parameters=torch.bfloat16, **where), backend)
    check(make_arguments((2, 19, 96), bias=False, **where)._replace(weight=None), backend)


def in_parts(args: NormArguments) -> torch.Tensor:
    """Groups of channels, one norm after the other."""
    given = [[None] * args.groups if t is None else t.chunk(args.groups, -1) for t in args.tensors()]
    return torch.cat([run(args._replace(x=x, weight=w, bias=b, groups=1)) for x, w, b in zip(*given, strict=True)], -1)


@pytest.mark.parametrize("backend", [triton_fused.BACKEND, reference.BACKEND], ids=lambda backend: backend.name)
@CENTERED
@pytest.mark.parametrize("shape", [(2, 9, 64), (3, 50, 4 * 87), (2, 7, 3, 52)], ids=str)
def test_groups_are_normed_by_themselves(backend, shape, center, monkeypatch, poisoned_memory):
    monkeypatch.setattr(shares, "PROGRAMS_MAX", 2)  # several tiles a program
    how = {"merge": len(shape) == 4, "groups": 4, "device": device_of(backend)}
    for bias, output in ((True, None), (False, torch.bfloat16)):
        args = make_arguments(shape, center=center, bias=bias, output=output, **how)
        require(backend, args)
        found, expected = output_and_gradients(args, backend.name), output_and_gradients(args, "reference", in_parts)
        for name, tensor in found.items():
            assert_close(tensor, expected[name], name, 1e-2 if output else None)


def test_more_rows_than_one_tile_per_program(monkeypatch):
    monkeypatch.setattr(shares, "PROGRAMS_MAX", 3)
    check(make_arguments((1, 37, 2, 700)))


@FAST
@CENTERED
def test_any_strides(backend, center):
    """Directions, tokens or channels that do not lie side by side are read where they are, or copied."""
    args = make_arguments((4, 3, 12, 2 * 48), center=center, device=device_of(backend))
    for x in (
        args.x.permute(1, 2, 0, 3),  # directions outermost in memory
        args.x.movedim(0, 2)[:, ::2],
        args.x[:1, :1].expand(2, 3, 12, 96),
        args.x.transpose(-1, -2).contiguous().transpose(-1, -2),  # channels apart
    ):
        assert not x.is_contiguous()
        check(args._replace(x=x), backend)
    halves = args.x.chunk(2, dim=-1)[1]
    check(NormArguments(halves, args.weight[:48], args.bias[:48], 1e-5, center, torch.float32, False), backend)


@FAST
def test_a_large_mean_does_not_swallow_the_variance(backend):
    """In one pass, mean square minus squared mean, nothing would be left of it in float32."""
    args = make_arguments((2, 8, 2, 384), offset=1e4, device=device_of(backend))
    exact, _ = reference.norm(NormArguments(*(t.double() for t in args[:3]), 1e-5, True, torch.float64, True))
    for chosen in (backend, reference.BACKEND):
        assert_close(output(chosen, args), exact.float(), tolerance=2e-3)  # float32 holds the mean to 1e-3


@pytest.mark.parametrize("backend", [*FAST.args[1], reference.BACKEND], ids=lambda backend: backend.name)
def test_the_sum_is_rounded_as_the_scan_rounds_it(backend):
    """1 + 2^-9 vanishes in bfloat16, so that these rows are constant and their norm zero."""
    device = device_of(backend)
    x = torch.ones(3, 2, 64, dtype=torch.bfloat16, device=device)
    x[:, 1, ::2] = 2.0**-9
    x[:, 1, 1::2] = 0
    args = NormArguments(x, torch.ones(64, device=device), None, 1e-5, True, torch.float32, True)
    assert torch.equal(output(backend, args), torch.zeros(3, 64, device=device))


@CENTERED
def test_two_backwards_are_bit_equal(center):
    args = make_arguments((3, 50, 2, 96), center=center)
    require(triton_fused.BACKEND, args)
    one, other = (output_and_gradients(args, "triton") for _ in range(2))
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@FAST
def test_every_direction_shares_one_gradient(backend):
    args = make_arguments((2, 5, 4, 96), device=device_of(backend))
    require(backend, args)
    assert output_and_gradients(args, backend.name)["gradient of x"].stride(-2) == 0


def test_no_rows():
    args = make_arguments((0, 2, 96))
    require(triton_fused.BACKEND, args)
    found = output_and_gradients(args, "triton")
    assert found["output"].shape == (0, 96)
    assert torch.equal(found["gradient of weight"], torch.zeros(96, device=DEVICE))


def test_c_gradients_do_not_depend_on_the_number_of_threads():
    args = make_arguments((3, 50, 2, 96), device="cpu")
    threads = torch.get_num_threads()
    found = []
    for number in (1, 3):
        torch.set_num_threads(number)
        found.append(output_and_gradients(args, "native"))
    torch.set_num_threads(threads)
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


def test_no_rows_on_a_cpu():
    assert sum_norm(torch.ones(0, 2, 96), torch.ones(96), eps=1e-5, merge=True).shape == (0, 96)


@CENTERED
def test_gradcheck(center):
    for channels, groups in ((5, 1), (6, 2)):
        args = make_arguments((2, 3, 2, channels), torch.float64, center, parameters=torch.float64, groups=groups)
        tensors = [tensor.requires_grad_() for tensor in args.tensors()]
        assert torch.autograd.gradcheck(lambda *t, args=args: run(NormArguments(*t, *args[3:])), tensors)


@CENTERED
def test_formula(center):
    args = make_arguments((2, 3, 2, 20), torch.float64, center, parameters=torch.float64)
    merged = args.x[:, :, 0] + args.x[:, :, 1]
    if center:
        merged = merged - merged.mean(-1, keepdim=True)
    expected = merged / (merged.square().mean(-1, keepdim=True) + 1e-5).sqrt() * args.weight + args.bias
    assert_close(run(args), expected)


def test_meta_device():
    args = make_arguments((2, 5, 2, 96))
    meta = sum_norm(args.x.to("meta"), args.weight.to("meta"), eps=1e-5, dtype=torch.float16, merge=True)
    assert meta.is_meta and meta.shape == (2, 5, 96) and meta.dtype == torch.float16


@CENTERED
@pytest.mark.parametrize("shape", [(2, 9, 1, 96), (3, 11, 2, 384), (2, 96)], ids=str)
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_compiled(shape, merge, center, fused, monkeypatch):
    """Our kernels as operators, which compilers see of layer norms on a GPU, and plain torch."""
    monkeypatch.setattr(OP, "fused", lambda args: fused)
    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    check(make_arguments(shape, center=center, bias=center, merge=merge), run=compiled)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("save", [True, False])
def test_opcheck(merge, save):
    args = make_arguments((9, 2, 96), torch.bfloat16, merge=merge)
    tensors = (tensor.requires_grad_(save) for tensor in args.tensors())
    torch.library.opcheck(OP.operator, (*tensors, *args[3:], save))


@pytest.mark.gpu
def test_compilers_see_our_layer_norm_on_a_gpu():
    args = make_arguments((2, 9, 4, 96), torch.bfloat16)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compile(sum_norm, backend=backend)(*args[:3], eps=args.eps, merge=True)
    assert "vssm.sum_norm" in graphs[0].code


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(weight=torch.ones(7)), r"weight has shape \(7,\); expected \(96,\), the channels of x"),
        (dict(bias=torch.ones(2, 96)), r"bias has shape \(2, 96\); expected \(96,\)"),
        (dict(x=torch.ones(96)), r"x has shape \(96,\); expected \(..., directions, channels\)"),
        (dict(groups=5), "x has 96 channels and groups is 5; expected a divisor"),
        (dict(eps=0.0), "eps is 0.0; expected a positive number"),
    ],
)
def test_errors(change, message):
    given = {"x": torch.ones(2, 96), "weight": torch.ones(96), "bias": None, "eps": 1e-5, "merge": True, **change}
    with pytest.raises(ValueError, match=message):
        sum_norm(**given)


@pytest.mark.gpu
@DTYPES
@CENTERED
@pytest.mark.parametrize("shape", [(8, 3136, 4, 96), (8, 196, 1, 384), (8, 49, 4, 768), (4, 730, 192)], ids=str)
def test_model_sizes_on_gpu(shape, center, dtype):
    args = make_arguments(shape, dtype, center, merge=len(shape) == 4)
    check(args)
    one, other = (output_and_gradients(args, "triton") for _ in range(2))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements_on_gpu():
    rows = 2**31 // 96 + 1000
    x = torch.zeros(rows, 96, dtype=torch.bfloat16, device="cuda")
    x[-1000:] = torch.randn(1000, 96, device="cuda")
    args = NormArguments(x, torch.ones(96, device="cuda"), None, 1e-5, True, torch.bfloat16, False)
    assert_close(output(triton_fused.BACKEND, args)[-1000:], reference.norm(args._replace(x=x[-1000:]))[0])


@pytest.mark.gpu
def test_many_channels_on_gpu():
    check(make_arguments((64, 2, 5000)))


@pytest.mark.parametrize("backend", [reference.BACKEND, native_cpu.BACKEND, triton_fused.BACKEND], ids=lambda b: b.name)
def test_float16_sums_saturate(backend):
    """Directions whose sum is beyond float16 are normed as if it were the largest number."""
    device = device_of(backend)
    x = torch.tensor([[6e4, -6e4, 1e4, 0], [6e4, -6e4, 1e4, 0]], dtype=torch.float16, device=device)[None]
    args = NormArguments(x, None, None, 1e-5, True, torch.float16, True)
    held = torch.tensor([[65504.0, -65504.0, 2e4, 0]], device=device)
    assert_close(output(backend, args), torch.nn.functional.layer_norm(held, (4,), eps=1e-5).half())


def added(x, branch, branch_bias, weight, bias, kept, scale, center, dtype):
    """`add_norm` operation by operation, in float64."""
    branch = branch.double() if branch_bias is None else branch.double() + branch_bias.double()
    total = x.double() + branch * (1.0 if kept is None else scale * kept.double())
    return total, reference.norm(NormArguments(total, weight, bias, 1e-5, center, dtype, False))[0]


@pytest.fixture
def one_kernel(monkeypatch):
    """Tensors on the CPU go a GPU's way, to kernels that Triton interprets."""
    pytest.importorskip("triton", reason="Triton is optional")
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)
    OP.forget()
    with use_backend("triton"):
        yield
    OP.forget()


@CENTERED
@pytest.mark.parametrize("branch_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("keeps", [True, False], ids=["kept", "all kept"])
@pytest.mark.parametrize("biased", [True, False], ids=["branch with bias", "branch without bias"])
@pytest.mark.parametrize("shape", [(3, 5, 24), (2, 3, 7, 87), (4, 16)], ids=str)
def test_a_branch_is_added_in_the_kernel_of_the_norm(
    one_kernel, center, branch_dtype, keeps, biased, shape, poisoned_memory
):
    generator = torch.Generator().manual_seed(0)
    x, branch, dtotal, dnormed = (torch.randn(shape, generator=generator) for _ in range(4))
    branch_bias, weight, bias = torch.randn(3, shape[-1], generator=generator)
    kept = (torch.arange(shape[0]) % 2).to(DEVICE, branch_dtype).view(-1, *[1] * (len(shape) - 1)) if keeps else None
    branch, branch_bias = branch.to(branch_dtype), branch_bias.to(branch_dtype) if biased else None
    leaves = [
        None if leaf is None else leaf.to(DEVICE).requires_grad_()
        for leaf in (x, branch, branch_bias, weight, bias if center else None)
    ]
    wanted = [leaf for leaf in leaves if leaf is not None]

    def results(function):
        outputs = function()
        gradients = [dtotal.to(outputs[0]), dnormed.to(outputs[1])]
        both = torch.autograd.grad(outputs, wanted, gradients, retain_graph=True)
        return [*outputs, *both, *torch.autograd.grad(outputs[1], wanted, gradients[1])]

    x, branch, branch_bias, *affine = leaves
    how = {"branch_bias": branch_bias, "kept": kept, "scale": 1.25}
    found = results(lambda: add_norm(x, branch, *affine, eps=1e-5, center=center, dtype=torch.float32, **how))
    expected = results(lambda: added(*leaves, kept, 1.25, center, torch.float64))
    assert found[0].dtype == torch.float32 and found[3].dtype == branch_dtype
    assert "_AddNorm" in type(found[0].grad_fn).__name__
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_close(one, other, f"result {i}", 1e-2 if one.dtype == torch.bfloat16 else 2e-5)


def test_second_derivatives_of_an_added_branch(one_kernel):
    x, branch, weight = (torch.randn(2, 6, requires_grad=True, device=DEVICE) for _ in range(3))
    branch_bias = torch.randn(6, requires_grad=True, device=DEVICE)

    def penalty(function):
        total, normed = function()
        value = (total.square() * normed).sum()
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (x, branch, branch_bias, weight))

    found = penalty(lambda: add_norm(x, branch, weight[0], eps=1e-5, branch_bias=branch_bias))
    expected = penalty(lambda: added(x, branch, branch_bias, weight[0], None, None, 1.0, True, torch.float64))
    for name, one, other in zip(("x", "branch", "branch_bias", "weight"), found, expected, strict=True):
        assert_close(one, other, name, 1e-4)


@pytest.mark.parametrize("name", ["kept", "branch", "branch_bias", "x"])
def test_an_added_branch_of_another_shape(name):
    shapes = {"x": (2, 3, 8), "branch": (2, 3, 8), "branch_bias": (8,), "kept": (2, 1, 1)} | {name: (3, 5)}
    x, branch, branch_bias, kept = (torch.ones(shape) for shape in shapes.values())
    with pytest.raises((RuntimeError, ValueError), match=r"size|shape"):
        add_norm(x, branch, torch.ones(8), eps=1e-5, branch_bias=branch_bias, kept=kept)


def test_compiled_code_is_given_gradients_that_begin_at_aligned_addresses():
    args = make_arguments((2, 3, 1, 87))
    with use_backend("triton"):
        found = torch.ops.vssm.sum_norm_backward(torch.ones(2, 3, 87), *OP.flatten(args))
    assert len(found) == 3 and all(gradient.data_ptr() % 16 == 0 for gradient in found)
