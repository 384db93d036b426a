"""Every backend of the causal convolution against the reference, and the reference against torch's conv1d."""

import pytest
import torch
import torch.nn.functional as F
from on_backends import DEVICE, device_of, require

from vssm_kernels import ScanTable, causal_conv1d
from vssm_kernels.causal_conv1d import OP, native_cpu, reference, triton_fused
from vssm_kernels.causal_conv1d.arguments import ConvArguments
from vssm_kernels.testing import assert_close, run_backend

FAST = [native_cpu.BACKEND, triton_fused.BACKEND]

# name: (tokens, channels, directions, width, order, bias, silu)
CASES = {
    "vim": (37, 20, 2, 4, "permuted", True, True),
    "one token": (1, 3, 1, 4, "permuted", True, True),
    "no bias, no silu": (9, 33, 1, 3, "permuted", False, False),
    "several channel blocks": (3, 130, 1, 2, "permuted", True, True),
    "one tap": (5, 16, 2, 1, "permuted", True, True),
    "empty steps": (12, 7, 2, 4, "empty", True, True),
    "empty and repeated": (9, 5, 2, 4, "random", True, True),
}


def make_arguments(case, dtype=torch.float32, device="cpu"):
    tokens, channels, directions, width, kind, bias, silu = CASES[case]
    generator = torch.Generator().manual_seed(0)
    permuted = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(directions)])
    order = {
        "permuted": permuted,
        "empty": torch.where(permuted % 3 == 0, -1, permuted),
        "random": torch.randint(-1, tokens, (directions, tokens + 3), generator=generator),
    }[kind].int()
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(2, tokens, channels, generator=generator).to(dtype)
    weight = torch.randn(directions, channels, width, generator=generator).to(parameters)
    offset = torch.randn(directions, channels, generator=generator).to(parameters) if bias else None
    tensors = (None if tensor is None else tensor.to(device) for tensor in (x, weight, offset))
    return ConvArguments(*tensors, ScanTable.of(order, tokens, device), silu)


def check_backend(backend, args):
    require(backend, args)
    gradient = torch.randn(args.output_shape, generator=torch.Generator().manual_seed(1)).to(args.x)
    output, gradients = run_backend(backend, args, gradient)
    expected, wanted = run_backend(reference.BACKEND, args, gradient)
    assert_close(output, expected, "output")
    for name, actual, want in zip(("x", "weight", "bias"), gradients, wanted, strict=True):
        assert (actual is None) == (want is None), name
        if want is not None:
            assert actual.dtype == want.dtype
            assert_close(actual, want, f"gradient of {name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", FAST, ids=lambda backend: backend.name)
def test_agrees_with_reference(backend, case, dtype, poisoned_memory):
    args = make_arguments(case, dtype, device_of(backend))
    if backend is triton_fused.BACKEND and args.order.repeats:
        pytest.importorskip("triton", reason="Triton is optional")
        assert backend.why_not(args) == "does not take an order that visits a token twice in one direction"
    else:
        check_backend(backend, args)


@pytest.mark.parametrize("programs", [1, 5])
def test_parts_of_a_walk(programs, monkeypatch, poisoned_memory):
    """The backward in Triton splits walks only where there would be few programs: small inputs all have many parts."""
    monkeypatch.setattr(triton_fused, "_PROGRAMS", programs)
    check_backend(triton_fused.BACKEND, make_arguments("empty steps", device=DEVICE))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_vim_sizes_on_gpu(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 197, 768, generator=generator).to("cuda", dtype)
    raster = torch.arange(197, dtype=torch.int32, device="cuda")
    weight, bias = torch.randn(2, 768, 4, device="cuda"), torch.randn(2, 768, device="cuda")
    args = ConvArguments(x, weight, bias, ScanTable.of(torch.stack([raster, raster.flip(0)]), 197), True)
    check_backend(triton_fused.BACKEND, args)
    gradient = torch.randn(args.output_shape, device="cuda", dtype=dtype)
    for one, other in zip(*(triton_fused.BACKEND.backward(args, gradient) for _ in range(2)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", FAST, ids=lambda backend: backend.name)
def test_an_empty_batch(backend):
    args = make_arguments("vim", device=device_of(backend))
    args = args._replace(x=args.x[:0])
    require(backend, args)
    output, gradients = run_backend(backend, args, args.x.new_ones(args.output_shape))
    assert output.shape == (0, 37, 2, 20) and torch.equal(gradients[1], torch.zeros_like(args.weight))


def test_reference_against_torch():
    """Raster order is torch's own conv1d with zeros in front."""
    args = make_arguments("vim")
    raster = torch.arange(37, dtype=torch.int32).expand(2, -1)
    output = causal_conv1d(args.x, args.weight, args.bias, raster.contiguous())
    for k in range(2):
        padded = F.pad(args.x.transpose(1, 2), (3, 0))
        expected = F.conv1d(padded, args.weight[k][:, None], args.bias[k], groups=20).transpose(1, 2)
        assert_close(output[:, :, k], expected, f"direction {k}")


@pytest.mark.parametrize("case", ["vim", "empty steps", "empty and repeated", "no bias, no silu"])
def test_gradcheck(case):
    args = make_arguments(case, torch.float64)
    tensors = [tensor.requires_grad_() for tensor in args.tensors() if tensor is not None]
    small = [
        tensors[0].detach()[:1, :, :3].requires_grad_(),
        *(t.detach()[:, :3].requires_grad_() for t in tensors[1:]),
    ]

    def op(x, weight, bias=None):
        return causal_conv1d(x, weight, bias, args.order, silu=args.silu)

    assert torch.autograd.gradcheck(op, small)


def test_opcheck_and_compile():
    args = make_arguments("empty and repeated")
    tensors = [tensor.requires_grad_() for tensor in args.tensors()]
    torch.library.opcheck(OP.operator, (*OP.flatten(args), True))
    compiled = torch.compile(causal_conv1d, fullgraph=True, backend="aot_eager")
    assert_close(compiled(*tensors, args.order, silu=True), causal_conv1d(*tensors, args.order, silu=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(weight=torch.randn(2, 21, 4)), "weight has shape .* as x has 20 channels"),
        (dict(bias=torch.randn(40)), r"bias has shape \(40,\); expected \(2, 20\)"),
        (dict(bias=torch.randn(2, 20) + 1j), r"bias is torch\.complex64; expected a floating-point tensor"),
        (dict(x=torch.randn(37, 20)), r"expected floats \(batch, tokens, channels\)"),
        (dict(order=torch.zeros(7, dtype=torch.int32)), r"order has shape \(7,\); expected \(directions, steps\)"),
        (dict(order=torch.zeros(3, 7, dtype=torch.int32)), r"expected \(directions, steps\) = \(2, steps\)"),
        (
            dict(order=torch.full((2, 3), 37, dtype=torch.int32)),
            "entries from 37 to 37; expected token .* 0 to 36",
        ),
    ],
)
def test_errors(change, message):
    args = make_arguments("vim")
    given = {"x": args.x, "weight": args.weight, "bias": args.bias, "order": args.order, **change}
    with pytest.raises(ValueError, match=message):
        causal_conv1d(**given)


def test_order_of_wrong_type():
    args = make_arguments("vim")
    with pytest.raises(TypeError, match=r"order is torch\.int64; expected torch\.int32"):
        causal_conv1d(args.x, args.weight, args.bias, args.order.table.long())
