"""Norms: dtypes and directions. Memory of the MLP, stochastic depth and initial values of the shared parts."""

from __future__ import annotations

import pytest
import torch
from timm.layers import Mlp
from torch import nn
from torch.autograd import forward_ad

import vssm.nn.product
from vssm.nn import SS2D, Block, BranchLayerNorm, BranchRMSNorm, LeanMlp, SelectiveScan, initialise_linear_layers
from vssm_kernels import use_backend


@pytest.mark.parametrize("kind", [BranchLayerNorm, BranchRMSNorm])
def test_branch_norms_read_float32_and_return_what_matrix_products_take(kind: type[nn.Module]) -> None:
    norm, x = kind(64), 100 * torch.randn(3, 64)
    nn.init.normal_(norm.weight)
    centered = x - x.mean(-1, keepdim=True) if kind is BranchLayerNorm else x
    expected = centered * torch.rsqrt(centered.square().mean(-1, keepdim=True) + 1e-5) * norm.weight
    torch.testing.assert_close(norm(x), expected)
    with torch.autocast("cpu", torch.float16):
        assert norm(x).dtype == torch.float16
        torch.testing.assert_close(norm(x).float(), expected, rtol=1e-3, atol=1e-3)
    half = norm.to(torch.bfloat16)(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=2e-2, atol=2e-2)


def test_a_branch_norm_without_weights_is_torchs() -> None:
    x = torch.randn(3, 64)
    norm = BranchLayerNorm(64, elementwise_affine=False)
    torch.testing.assert_close(norm(x), nn.functional.layer_norm(x, (64,)))
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == torch.bfloat16


@pytest.mark.parametrize(("kind", "torchs"), [(BranchLayerNorm, nn.LayerNorm), (BranchRMSNorm, nn.RMSNorm)])
def test_branch_norms_load_torchs_weights_and_merge_directions(kind: type[nn.Module], torchs: type[nn.Module]) -> None:
    reference, directions = torchs(64, eps=1e-5), torch.randn(2, 5, 3, 64)
    nn.init.normal_(reference.weight)
    norm = kind(64)
    norm.load_state_dict(reference.state_dict())
    torch.testing.assert_close(norm(directions, merge=True), reference(directions.sum(2)))
    torch.testing.assert_close(norm(directions), reference(directions))


def test_lean_mlp_is_timms_and_keeps_no_wide_tensor_twice() -> None:
    lean, timms = LeanMlp(4, 16), Mlp(4, 16)
    timms.load_state_dict(lean.state_dict())
    wide, gradients = {}, {}
    for mlp in (lean, timms):
        x, kept = torch.linspace(-2, 2, 24).view(2, 3, 4).requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            output = mlp(x)
        output.square().sum().backward()
        wide[mlp] = kept.count(2 * 3 * 16)
        gradients[mlp] = [x.grad, *(parameter.grad for parameter in mlp.parameters())]
    torch.testing.assert_close(gradients[lean], gradients[timms])
    assert wide[lean] < wide[timms]


@pytest.mark.parametrize("recorded", [True, False])
def test_forward_mode_derivatives_pass_through_the_mlp(recorded: bool) -> None:
    mlp, x, tangent = LeanMlp(4, 16), torch.randn(2, 4), torch.randn(2, 4)
    with forward_ad.dual_level(), torch.set_grad_enabled(recorded):
        found = forward_ad.unpack_dual(mlp(forward_ad.make_dual(x, tangent))).tangent
    torch.testing.assert_close(found, torch.func.jvp(mlp, (x,), (tangent,))[1])


def test_stochastic_depth_drops_both_branches_in_training_alone() -> None:
    block, x = Block(8, nn.Linear(8, 8), nn.Linear(8, 8), drop_path=1.0), torch.randn(2, 3, 5, 8)
    assert torch.equal(block(x), x)
    assert not torch.isclose(block.eval()(x), x).all()


def test_stochastic_depth_that_is_left_on_drops_in_inference():
    block, x = Block(8, nn.Linear(8, 8), drop_path=1.0).eval(), torch.randn(2, 3, 5, 8)
    block.drop_path.train()
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("hooked", [False, True], ids=["one kernel", "hooked"])
def test_a_block_adds_a_branch_in_its_second_norm_on_a_gpu(monkeypatch, hooked: bool) -> None:
    pytest.importorskip("triton", reason="Triton is optional")
    torch.manual_seed(0)
    block, x = Block(8, nn.Linear(8, 8), nn.Linear(8, 8), drop_path=0.4), torch.randn(6, 3, 5, 8)
    seen = []
    if hooked:  # what a hook is given must be there
        block.norm2.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))

    def step() -> list[torch.Tensor]:
        torch.manual_seed(1)
        block.zero_grad()
        output = block(x)
        output.square().sum().backward()
        return [output.detach(), *(parameter.grad for parameter in block.parameters())]

    expected = step()
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)
    with use_backend("triton"):
        torch.testing.assert_close(step(), expected)
    assert len(seen) == 2 * hooked


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_gated_mixer_makes_its_halves_by_two_products_on_a_gpu(monkeypatch, bias: bool, hooked: bool) -> None:
    torch.manual_seed(0)
    mixer, x = SS2D(4, gated=True), torch.randn(2, 3, 5, 4)
    if bias:
        mixer.in_proj.bias = nn.Parameter(torch.randn(8))
    if hooked:
        mixer.in_proj.register_forward_hook(lambda layer, inputs, output: 2 * output)

    def run() -> list[torch.Tensor]:
        mixer.zero_grad()
        mixer(x).square().sum().backward()
        return [mixer(x), *(parameter.grad for parameter in mixer.parameters())]

    expected = run()
    monkeypatch.setattr(vssm.nn.product, "runs_eagerly_on_gpu", lambda x: True)
    torch.testing.assert_close(run(), expected)
    assert all(half.is_contiguous() is not hooked for half in mixer.halves(x))


def test_scales_of_a_block_start_where_the_families_start_them() -> None:
    block = Block(8, nn.Linear(8, 8), nn.Linear(8, 8), layer_scale=1e-5, residual_scale=True)
    starts = {name: parameter.unique().tolist() for name, parameter in block.named_parameters() if "scale" in name}
    small, one = torch.tensor([1e-5]).tolist(), [1.0]
    assert starts == {
        "layer_scale.gamma": small,
        "layer_scale2.gamma": small,
        "residual_scale.gamma": one,
        "residual_scale2.gamma": one,
    }


@pytest.mark.parametrize("scans", [False, True])
def test_linear_layers_are_initialised_and_the_rest_is_left(scans: bool) -> None:
    torch.manual_seed(0)
    linear = [nn.Linear(200, 300), nn.Linear(300, 200, bias=False)]
    scan = SelectiveScan(200, directions=4, state=16, rank=100)
    model = nn.Sequential(*linear, nn.Conv2d(3, 4, 3), BranchLayerNorm(4), scan)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    initialise_linear_layers(model, scans)
    for weight in [layer.weight for layer in linear] + [scan.x_proj, scan.dt_proj] * scans:
        assert abs(weight.mean()) < 1e-3 and abs(weight.std() - 0.02) < 1e-3
    for bias in [linear[0].bias] + [scan.dt_bias] * scans:
        assert not bias.any()
    changed = {"0.weight", "0.bias", "1.weight"} | ({"4.x_proj", "4.dt_proj", "4.dt_bias"} if scans else set())
    assert {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])} == changed
