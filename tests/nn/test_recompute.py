"""What is not saved for a backward and computed again, where somebody put another part in a layer's place."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from vssm.nn import GroupLinear, LeanMlp, Linear, VimMixer, product_of_recomputed
from vssm_kernels.testing import assert_close


class LowRank(nn.Module):
    """A layer with what LoRA adds to it."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer, self.dropout = layer, nn.Dropout(0.5)
        self.A, self.B = nn.Linear(layer.in_features, 2), nn.Linear(2, layer.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.B(self.A(self.dropout(x)))


def _low_rank(mlp: LeanMlp) -> None:
    mlp.fc2 = LowRank(mlp.fc2)


def _dropout_before_the_layer(mlp: LeanMlp) -> None:
    mlp.fc2 = nn.Sequential(nn.Dropout(0.5), mlp.fc2)


def _dropout_behind_the_activation(mlp: LeanMlp) -> None:
    mlp.act = nn.Sequential(nn.GELU(), nn.Dropout(0.5))


def _parameters_in_the_activation(mlp: LeanMlp) -> None:
    mlp.act = nn.PReLU()


def _hook_on_the_layer(mlp: LeanMlp) -> None:
    mlp.fc2.register_forward_pre_hook(lambda layer, given: nn.functional.dropout(given[0]))


def _hook_on_the_activation(mlp: LeanMlp) -> None:
    mlp.act.register_forward_hook(lambda layer, given, output: nn.functional.dropout(output))


CHANGES = [
    _low_rank,
    _dropout_before_the_layer,
    _dropout_behind_the_activation,
    _parameters_in_the_activation,
    _hook_on_the_layer,
    _hook_on_the_activation,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_another_part_has_the_gradients_of_the_forward_that_was_run(change):
    torch.manual_seed(0)
    mlp, x = LeanMlp(4, 8), torch.randn(5, 4)
    change(mlp)

    def gradients(run) -> list[Tensor]:
        torch.manual_seed(1)
        value = run(x).square().sum()
        torch.manual_seed(2)  # other random numbers than those of the forward
        return torch.autograd.grad(value, list(mlp.parameters()))

    for found, expected in zip(gradients(mlp), gradients(lambda x: mlp.fc2(mlp.act(mlp.fc1(x)))), strict=True):
        assert_close(found, expected, "gradient", 1e-6)


def test_a_layer_of_several_products_does_not_read_weights_that_changed_since_the_forward():
    layer, x = GroupLinear(2, 4, 3), torch.randn(2, 5, 8, requires_grad=True)
    y = product_of_recomputed(layer, torch.relu, x)
    with torch.no_grad():
        layer.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_what_a_hook_takes_has_gradients():
    mlp, taken = LeanMlp(4, 8), []
    mlp.act.register_forward_hook(lambda layer, given, output: taken.append(output))
    mlp(torch.randn(5, 4))
    taken[0].sum().backward()
    assert len(taken) == 1 and mlp.fc1.weight.grad.any()


def test_hooks_of_all_modules_see_every_layer():
    mlp, mixer, seen = LeanMlp(4, 8), VimMixer(4), []
    hook = register_module_forward_hook(lambda module, given, output: seen.append(module))
    try:
        mlp(torch.randn(5, 4))
        mixer(torch.randn(1, 6, 4), 2, 3)
    finally:
        hook.remove()
    assert {*mlp.children(), mixer.in_proj, mixer.out_proj} <= set(seen)


def test_a_hook_on_a_scan_has_the_same_effect_in_training_and_in_inference():
    mixer, tokens = VimMixer(4), torch.randn(1, 6, 4)
    mixer.scan.register_forward_hook(lambda scan, given, output: output + 1)
    with torch.no_grad():
        inferred = mixer(tokens, 2, 3)
    assert_close(mixer(tokens, 2, 3), inferred, "output", 1e-5)


def test_second_derivatives_of_an_autocast_product():
    """Autocast is off in the backward, where what the function returns stays wide."""
    torch.manual_seed(0)
    layer, x = Linear(4, 3), torch.randn(8, 4, requires_grad=True)

    def second() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            loss = product_of_recomputed(layer, torch.tanh, x).float().square().sum()
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    found = second()
    layer.register_forward_hook(lambda *_: None)  # is called as any layer
    assert_close(found, second(), tolerance=1e-2)
