"""As on a GPU: a convolution's bias is added in the kernel of the activation behind it, where nothing sees between."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vssm.nn import ChannelsLastConv2d, ConvMlp, ConvNormAct, LeanMlp, Linear
from vssm.nn.conv import convolved_silu
from vssm.nn.reading import product_and_bias
from vssm_kernels import activation, running_norm
from vssm_kernels.gpu import Launcher
from vssm_kernels.testing import assert_close

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def launched(monkeypatch):
    """The kernels of activations that run; tensors of the CPU go the way of a GPU's."""
    pytest.importorskip("triton", reason="Triton is optional")
    kernels = []
    launch = Launcher.__call__

    def noted(self, *tensors):
        if self.kernel in (activation.forward_kernel, activation.backward_kernel, running_norm.norm_kernel):
            kernels.append(self.kernel.fn.__name__)
        launch(self, *tensors)

    monkeypatch.setattr(Launcher, "__call__", noted)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)
    return kernels


class ConvolvedSiLU(nn.Module):
    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return convolved_silu(self.conv, x)


def depthwise(channels: int = 12, **arguments) -> ChannelsLastConv2d:
    return ChannelsLastConv2d(channels, channels, 3, padding=1, groups=channels, **arguments)


def outputs_and_gradients(layers, x):
    """And the bytes of the maps that are saved for the backward."""
    layers.zero_grad()
    x, saved = x.clone().requires_grad_(), []

    def pack(tensor):
        if len(tensor) == len(x):
            saved.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layers(x)
    y.float().square().mean().backward()
    return [y.detach(), x.grad, *(parameter.grad.clone() for parameter in layers.parameters())], sum(saved)


LAYERS = {
    "silu": lambda: ConvolvedSiLU(depthwise()),
    "silu, half size": lambda: ConvolvedSiLU(ChannelsLastConv2d(12, 6, 3, stride=2, padding=1, padding_mode="reflect")),
    "mlp": partial(ConvMlp, 12, 24, residual=False, pointwise=Linear),
    "mlp, residual": partial(ConvMlp, 12, 24),
    "mlp without convolution": partial(LeanMlp, 12, 24),
}


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_one_kernel_each_way(make, autocast, request):
    torch.manual_seed(0)
    layers, x = make().to(DEVICE), torch.randn(2, 6, 5, 12, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        expected, bytes_of_torch = outputs_and_gradients(layers.cpu(), x.cpu())
        launched = request.getfixturevalue("launched")
        found, bytes_of_kernel = outputs_and_gradients(layers.to(DEVICE), x)
    assert launched == ["forward_kernel", "backward_kernel"]
    assert 0 < bytes_of_kernel <= bytes_of_torch
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        # Where a GPU rounds to bfloat16, Triton's interpreter cuts.
        assert_close(one.cpu(), other, tolerance=4e-2 if autocast else 1e-5)


def doubled(module, inputs, output):
    return 2 * output


@pytest.mark.parametrize(
    "change",
    [
        lambda conv: conv.register_forward_hook(doubled),
        lambda conv: setattr(conv, "forward", lambda x: 2 * ChannelsLastConv2d.forward(conv, x)),
        lambda conv: torch.nn.utils.parametrizations.weight_norm(conv),
        lambda conv: setattr(conv, "bias", None),
    ],
    ids=["hook", "forward", "parametrization", "no bias"],
)
def test_what_a_convolution_returns_is_seen(launched, change):
    conv, x = depthwise().to(DEVICE), torch.randn(1, 4, 4, 12, device=DEVICE)
    change(conv)
    y, bias = product_and_bias(conv, x)
    assert bias is None and torch.equal(y, conv(x))
    assert torch.equal(convolved_silu(conv, x), F.silu(y)) and not launched


def test_compilers_and_transforms_are_given_torchs_operations(launched):
    layers, x = ConvolvedSiLU(depthwise()).to(DEVICE), torch.randn(1, 4, 4, 12, device=DEVICE)
    expected = F.silu(layers.conv(x))
    assert_close(torch.compile(layers, backend="aot_eager", fullgraph=True)(x), expected)
    assert_close(torch.func.vmap(lambda x: layers(x[None])[0])(x), expected)
    assert_close(torch.jit.trace(layers, x, check_trace=False)(x), expected)
    assert not launched


@pytest.mark.parametrize("act_layer", [nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Identity], ids=lambda kind: kind.__name__)
def test_a_running_norm_and_its_activation_are_one_kernel(launched, act_layer):
    layer = ConvNormAct(3, 12, kernel_size=3, stride=2, act_layer=act_layer).to(DEVICE)
    x = torch.randn(2, 3, 9, 7, device=DEVICE).contiguous(memory_format=torch.channels_last)
    layer(x)  # other statistics than zeros and ones
    expected = layer.eval()(x)
    assert not launched
    with torch.no_grad():
        found = layer(x)
    assert launched == ["norm_kernel"] and found.stride() == expected.stride()
    assert_close(found, expected.detach(), tolerance=2e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.train(),
        lambda layer: layer.bn.register_forward_hook(lambda module, inputs, output: 2 * output),
        lambda layer: layer.act.register_forward_hook(lambda module, inputs, output: 2 * output),
        lambda layer: setattr(layer, "bn", nn.GroupNorm(3, 12).to(DEVICE)),
        lambda layer: setattr(layer.bn, "running_var", None) or setattr(layer.bn, "running_mean", None),
    ],
    ids=["training", "hook on the norm", "hook on the activation", "another norm", "no statistics"],
)
def test_a_norm_that_somebody_sees_is_torchs(launched, change):
    layer = ConvNormAct(3, 12, kernel_size=3).to(DEVICE).eval()
    x = torch.randn(2, 3, 9, 7, device=DEVICE).contiguous(memory_format=torch.channels_last)
    change(layer)
    expected = layer(x).detach()
    with torch.no_grad():
        assert_close(layer(x), expected, tolerance=1e-6)
    assert not launched
