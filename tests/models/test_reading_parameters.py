"""Blocks that read their parameters by one kernel, as on a GPU, compute what layers that read by themselves do."""

import pytest
import timm
import torch
from families import CLASSES, shallow
from quick_interpreter import quick_interpreter  # noqa: F401
from torch.utils.checkpoint import checkpoint

from vssm.nn import Block, Linear
from vssm.nn.reading import ReadsParameters, ReadTogether
from vssm.ops import CAST
from vssm_kernels import parameters
from vssm_kernels.gpu import Launcher
from vssm_kernels.testing import assert_close


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Tensors of the CPU take a GPU's way through the layers; the kernel that reads is interpreted, ops run in C."""
    pytest.importorskip("triton", reason="Triton is optional")
    kernels = []
    launch = Launcher.__call__

    def counted(self, *tensors):
        if self.kernel in (parameters.read_kernel, parameters.gradient_kernel):
            kernels.append(self.kernel)
        launch(self, *tensors)

    monkeypatch.setattr(Launcher, "__call__", counted)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)
    return kernels


def logits_and_gradients(model: torch.nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(0)))
    logits.square().mean().backward()
    return logits.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", [*map(shallow, CLASSES)], ids=lambda kind: kind[0])
def test_a_training_step_under_autocast(kind, as_on_a_gpu):
    """Where layers read what a block has not read, as in an autocast of their own or in a checkpoint."""
    name, arguments = kind
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **arguments)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 3, 40, 48)).float().square().mean()
    loss.backward()
    without = [name for name, each in model.named_parameters() if each.grad is None or not each.grad.isfinite().all()]
    assert not without and as_on_a_gpu


@pytest.mark.parametrize("kind", [*map(shallow, CLASSES)], ids=lambda kind: kind[0])
def test_logits_and_gradients(kind, request):
    name, arguments = kind
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **arguments).eval()
    expected, wanted = logits_and_gradients(model)
    kernels = request.getfixturevalue("as_on_a_gpu")
    logits, gradients = logits_and_gradients(model)
    assert_close(logits, expected, "logits", 1e-5)
    largest = max(gradient.abs().max() for gradient in wanted.values())
    for parameter, gradient in wanted.items():
        if gradient.abs().max() > 1e-5 * largest:  # of less, a thousandth is rounding
            assert_close(gradients[parameter], gradient, parameter, 1e-3)
    # Parameters that are only cast, as all of VSSD's, are read as they lie: the model is in float32.
    layers = [module for block in model.modules() if isinstance(block, Block) for module in block.modules()]
    forms = {form for layer in layers if isinstance(layer, ReadsParameters) for form in layer.to_read(True).values()}
    assert len(kernels) >= (2 if forms - {CAST} else 0)


def test_one_kernel_each_way_and_hooks_are_heard(as_on_a_gpu):
    block = Block(8, torch.nn.Sequential(Linear(8, 8), torch.nn.GELU(), Linear(8, 8)))
    x = torch.randn(2, 3, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        block(x).sum().backward()
        assert [kernel.fn.__name__ for kernel in as_on_a_gpu] == ["read_kernel", "gradient_kernel"]
        as_on_a_gpu.clear()

        def doubled(layer, inputs):
            layer.weight.data.mul_(2)

        before = block.mixer[0].weight.detach().clone()
        block.mixer[0].register_forward_pre_hook(doubled)
        block(x)
        assert torch.equal(block.mixer[0].weight, 2 * before)
        assert len(as_on_a_gpu) == 2, "the layer with a hook reads after it, the other in the block"


def test_weights_that_are_brought_just_before_a_layer_runs(as_on_a_gpu):
    """As offloading does, which puts another forward before a layer's own and leaves its parameters empty between."""
    block, x = Block(8, Linear(8, 8)), torch.randn(2, 3, 4, 8)
    layer, weight = block.mixer, block.mixer.weight
    with torch.autocast("cpu", torch.bfloat16):
        expected = block(x)

        def forward(x):
            layer.weight = weight
            try:
                return type(layer).forward(layer, x)
            finally:
                layer.weight = torch.nn.Parameter(torch.zeros_like(weight))

        layer.weight = torch.nn.Parameter(torch.zeros_like(weight))
        layer.forward = forward
        assert torch.equal(block(x), expected)


def test_other_dtypes_inside_are_read_anew(as_on_a_gpu):
    layer = Linear(4, 3)
    x = torch.randn(2, 4)

    def check(x):
        assert layer(x).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert layer(x).dtype == torch.float32

    with torch.autocast("cpu", torch.bfloat16):
        ReadTogether(torch.nn.Sequential(layer)).run(check, x)


def test_a_checkpoint_inside_a_block_saves_what_it_computes_again(as_on_a_gpu):
    class Checkpointed(torch.nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    block = Block(8, Linear(8, 8), Checkpointed(Linear(8, 8), torch.nn.GELU(), Linear(8, 8)))
    with torch.autocast("cpu", torch.bfloat16):
        block(torch.randn(2, 3, 4, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
