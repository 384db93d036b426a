"""MambaVision: its mixer, which blocks scan and which attend, what fills windows up, initial weights, the licence."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from families import KINDS
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from vssm.models import FAMILIES, load_checkpoint, official_state_dict, our_layout
from vssm.models._pyramid import Stage
from vssm.models.mambavision import MambaVision, MambaVisionMixer
from vssm.nn import Attention, Block, cut_windows
from vssm.scan import bidirectional

NAME, SMALL = next(kind for kind in KINDS if kind[0].startswith("mambavision"))


def small(**arguments: object) -> MambaVision:
    torch.manual_seed(0)
    return timm.create_model(NAME, **{"num_classes": 10, **SMALL, **arguments})


def mixed(mixer: MambaVisionMixer, x: Tensor) -> Tensor:
    """The mixer in plain torch, with one direction."""
    tokens = (x @ mixer.in_proj.weight.T).flatten(1, 2)
    before, after = F.pad(tokens, (0, 0, 1, 0))[:, :-1], F.pad(tokens, (0, 0, 0, 1))[:, 1:]
    taps = mixer.conv_weight.flatten(0, 1).unbind(-1)
    convolved = sum(tap * each for tap, each in zip(taps, (before, tokens, after), strict=True))
    u, beside = (convolved / (1 + torch.exp(-convolved))).chunk(2, dim=-1)
    scan = mixer.scan
    step, B, C = (u @ scan.x_proj[0].T).split([scan.rank, 8, 8], dim=-1)
    delta = F.softplus(step @ scan.dt_proj[0].T + scan.dt_bias[0] + scan.dt_bias[0])
    state, outputs = 0, []
    for t in range(u.shape[1]):
        decay = torch.exp(-delta[:, t, :, None] * scan.A_log[0].exp())
        state = decay * state + (delta * u)[:, t, :, None] * B[:, t, None]
        outputs.append((state * C[:, t, None]).sum(-1) + scan.D[0] * u[:, t])
    return (torch.cat([torch.stack(outputs, 1), beside], -1) @ mixer.out_proj.weight.T).view_as(x)


def made(**arguments: object) -> MambaVisionMixer:
    torch.manual_seed(0)
    mixer = MambaVisionMixer(24, **arguments)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.uniform_(-0.5, 0.5)
    return mixer


@pytest.mark.parametrize("size", [(3, 5), (1, 1), (4, 2)], ids=str)
def test_mixer_is_that_of_plain_torch(size: tuple[int, int]) -> None:
    """With its gradients: a convolution that looks both ways, a bias counted twice, a branch beside the scan."""
    mixer, x = made(), torch.randn(2, *size, 24, requires_grad=True)
    found, expected = mixer(x), mixed(mixer, x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    weights = torch.linspace(-1, 1, found.numel()).view_as(found)
    inputs = [x, *mixer.parameters()]
    gradients, wanted = (torch.autograd.grad((y * weights).sum(), inputs) for y in (found, expected))
    torch.testing.assert_close(gradients, wanted, atol=1e-4, rtol=1e-3)


def test_directions_are_summed() -> None:
    """Backwards is the map turned round, but for the convolution, which stays that of raster order."""
    mixer, x = made(scan_order=bidirectional), torch.randn(2, 3, 5, 24)
    mixer.conv_weight.data[..., 0] = mixer.conv_weight.data[..., 2]  # the same from both ends
    with torch.no_grad():
        for parameter in mixer.scan.parameters():
            parameter[1] = parameter[0]
        one = made()
        one.load_state_dict({n: v[:1] if n.startswith("scan.") else v for n, v in mixer.state_dict().items()})
        middle = one.out_proj.weight[:, 12:] @ F.silu(one.convolved(one.in_proj(x).flatten(1, 2)))[..., 12:].mT
        both = one(x) + one(x.flip(1, 2)).flip(1, 2) - middle.mT.view_as(x)
        torch.testing.assert_close(mixer(x), both, atol=1e-5, rtol=1e-4)


def test_odd_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="dims has 17 channels where maps are scanned; expected an even number"):
        small(dims=(16, 24, 17, 40))


@pytest.mark.parametrize("name", FAMILIES["mambavision"].models)
def test_the_first_half_of_a_stage_scans_and_the_rest_attends(name: str) -> None:
    """Rounded up: 4 + 4 blocks of 8, 4 + 3 of 7."""
    model = timm.create_model(name, device="meta")
    for stage in model.stages[2:]:
        scans = [isinstance(block.mixer, MambaVisionMixer) for block in stage.blocks]
        depth, scanned = len(scans), math.ceil(len(scans) / 2)
        assert scans == [True] * scanned + [False] * (depth - scanned)
        assert all(isinstance(block.mixer, Attention) for block in stage.blocks[scanned:])
        assert {block.layer_scale is not None for block in stage.blocks} == {"base" in name or "large" in name}
    assert all(block.mlp is None and block.layer_scale is None for stage in model.stages[:2] for block in stage.blocks)


@torch.no_grad()
def test_zeros_that_fill_windows_up_take_part_and_are_cut_off_once() -> None:
    """A stage on a map that no window divides gives what it gives on that map with zeros, in all of its blocks."""
    stage, x = small().eval().stages[2], torch.randn(2, 4, 5, 32)
    padded = F.pad(x, (0, 0, 0, 1, 0, 2))  # to 6 x 6, four windows of 3 x 3
    torch.testing.assert_close(stage.run_blocks(x), stage.run_blocks(padded)[:, :4, :5])
    one = padded[:, :3, :3]
    torch.testing.assert_close(stage.run_blocks(padded)[:, :3, :3], stage.blocks(one))
    other = torch.cat([x, torch.randn(2, 4, 1, 32)], 2)
    assert (stage.run_blocks(other)[:, :, :5] - stage.run_blocks(x)).abs().max() > 1e-3


@torch.no_grad()
def test_a_map_smaller_than_a_window_is_one_window() -> None:
    model = small(windows=(9, 7)).eval()
    (early, late), sizes = model.stages[2:], []
    hook = early.blocks[0].register_forward_hook(lambda _, inputs, output: sizes.append(inputs[0].shape))
    assert [x.shape[1:] for x in model.forward_intermediates(torch.randn(1, 3, 33, 20))[1][2:]] == [
        (32, 3, 2),
        (40, 2, 1),
    ]
    hook.remove()
    assert sizes == [(1, 9, 9, 32)] and late.window == 7


@pytest.mark.parametrize(("heads", "windows"), [((4,), (3, 2)), ((4, 2, 2, 2, 2), (3, 3, 3, 3, 2))])
def test_heads_and_windows_are_those_of_the_last_stages(heads: tuple, windows: tuple) -> None:
    with pytest.raises(ValueError, match="expected one of each for every stage that is not of convolutions, at most 4"):
        small(window_heads=heads, windows=windows)
    with pytest.raises(ValueError, match=r"windows is \(0,\); expected a list, each entry a whole number from 1"):
        small(windows=(0,))


def test_every_stage_may_have_windows() -> None:
    model = small(window_heads=(2, 2, 4, 2), windows=(5, 4, 3, 2))
    assert all(isinstance(stage.blocks[0].mixer, MambaVisionMixer) for stage in model.stages)
    assert model(torch.randn(1, 3, 64, 40)).shape == (1, 10)


def test_initial_weights_are_the_official_ones() -> None:
    """Which undo Mamba's step sizes: their bias is zero, and their projection as small as every linear layer."""
    torch.manual_seed(1)
    model = MambaVision(dims=(32, 64, 128, 256), depths=(1, 1, 2, 2), layer_scale=1e-5)
    mixer, conv = model.stages[3].blocks[0].mixer, model.stages[1].blocks[0].mixer[0].conv
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    for weight in (*linear, mixer.scan.x_proj, mixer.scan.dt_proj):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1) and abs(weight.mean().item()) < 0.002
    for bias in (*(m.bias for m in model.modules() if isinstance(m, nn.Linear) and m.bias is not None),
                 mixer.scan.dt_bias):  # fmt: skip
        assert not bias.any()
    torch.testing.assert_close(mixer.scan.A_log.exp(), torch.arange(1.0, 9).expand(1, 128, 8))
    assert (mixer.scan.D == 1).all() and (model.stages[3].blocks[0].layer_scale2.gamma == 1e-5).all()
    # torch's own of convolutions, uniform within the inverse root of what an output reads.
    for weight, bound in ((mixer.conv_weight, 3**-0.5), (conv.weight, (9 * 64) ** -0.5)):
        assert bound * 0.98 < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_weight_decay_spares_what_is_one_dimensional_officially() -> None:
    model = small()
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    official = official_state_dict(model)
    for name, parameter in model.named_parameters():
        (first, *_) = model.renaming.official(name)
        assert (id(parameter) in decayed) == (official[first].dim() > 1), name


def test_drop_path_leaves_out_windows_one_by_one() -> None:
    torch.manual_seed(0)
    block = Block(4, nn.Identity(), drop_path=0.5, norm=nn.Identity)
    x = Stage(nn.Identity(), [block], channels=4, window=3).train()(torch.ones(1, 24, 24, 4))
    windows = cut_windows(x, 3).flatten(1)
    assert set(windows.unique().tolist()) == {1.0, 3.0} and all(len(each.unique()) == 1 for each in windows)


def test_reading_official_weights_says_their_licence_once_and_ours_nothing(tmp_path: Path) -> None:
    model, twin = small(), small()
    official = official_state_dict(model)
    torch.save({"state_dict": {f"module.{name}": value for name, value in official.items()}}, tmp_path / "theirs.pth")
    torch.save({"model": model.state_dict()}, tmp_path / "ours.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_checkpoint(twin, tmp_path / "ours.pth")
    with pytest.warns(UserWarning, match=r"CC-BY-NC-SA-4\.0: no commercial use"):
        load_checkpoint(twin, tmp_path / "theirs.pth")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(2):
            our_layout(official, model)
    assert len(said) == 1
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("overlay", ["file", "state_dict"])
def test_pretrained_models_say_the_licence_too(tmp_path: Path, overlay: str) -> None:
    official = official_state_dict(small())
    torch.save(official, tmp_path / "weights.pth.tar")
    given = {"file": str(tmp_path / "weights.pth.tar"), "state_dict": official}
    with pytest.warns(UserWarning, match=re.escape(MambaVision.weights_notice)):
        small(pretrained=True, pretrained_cfg_overlay={overlay: given[overlay]})


def test_every_configuration_has_the_licence_of_the_weights() -> None:
    for name in FAMILIES["mambavision"].models:
        cfg = timm.get_pretrained_cfg(name)
        assert cfg.license == "cc-by-nc-sa-4.0"
        assert cfg.license.upper() in MambaVision.weights_notice
        assert cfg.tag == ("nvlabs_in21k_ft_in1k" if name.endswith("21k") else "nvlabs_in1k")
