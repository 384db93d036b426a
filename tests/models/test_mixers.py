"""Every mixer of the table in place of a block's own."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import timm
import torch
from torch import Tensor, nn

from vssm.models import MIXERS, resolve_mixer
from vssm.models._mixers import takes
from vssm.nn import SS2D, SSD, NoncausalSSD
from vssm.scan import hilbert

SMALL = {"dims": (16, 24), "depths": (1, 2), "num_classes": 10}
every_mixer = pytest.mark.parametrize("mixer", MIXERS)


def model(mixer: object, family: str = "vmamba_tiny", **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(family, mixer=mixer, **SMALL, **arguments)


def images() -> Tensor:
    return torch.randn(2, 3, 40, 64, generator=torch.Generator().manual_seed(0))


@every_mixer
@pytest.mark.parametrize("family", ["vmamba_tiny", "msvmamba_v3_tiny"])
def test_a_mixer_by_name_trains_and_comes_back_from_a_pickle(mixer: str, family: str) -> None:
    made = model(mixer, family)
    mixers = [block.mixer for stage in made.stages for block in stage.blocks]
    assert [type(each) for each in mixers] == [MIXERS[mixer]] * 3
    output = made(images())
    output.square().sum().backward()
    without = [name for name, parameter in made.named_parameters() if not parameter.grad.any()]
    assert not without
    with torch.no_grad():
        for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            torch.testing.assert_close(copied(images()), output, rtol=0, atol=0)


@every_mixer
@torch.no_grad()
def test_along_another_order_a_mixer_gives_another_result(mixer: str) -> None:
    if not takes(MIXERS[mixer], "scan_order"):
        told = f"mixer '{mixer}' walks along no scan order: leave scan_order out, or take one of s6"
        with pytest.raises(ValueError, match=told):
            model(mixer, scan_order="hilbert")
        return
    named, given, own = model(mixer, scan_order="hilbert"), model(mixer, scan_order=hilbert), model(mixer)
    for module in named.modules():  # as they start, another order hardly changes the logits
        if isinstance(module, nn.Linear):
            module.weight.mul_(10)
    for each in (given, own):  # as many directions
        each.load_state_dict(named.state_dict())
    torch.testing.assert_close(given.eval()(images()), named.eval()(images()), rtol=0, atol=0)
    assert (own.eval()(images()) - named(images())).abs().max() > 1e-5
    assert model(mixer, scan_order=["raster", "spiral"])(images()).shape == (2, 10)


@every_mixer
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_mixer_under_autocast_is_near_float32(mixer: str, dtype: torch.dtype) -> None:
    made = model(mixer).eval()
    expected = made(images())
    with torch.autocast("cpu", dtype):
        found = made(images()).float()
    assert (found - expected).norm() <= 0.05 * expected.norm()


def test_a_mixer_is_a_class_with_arguments_of_its_own_too() -> None:
    made = model(partial(SSD, state=5, expansion=3.0), expansion=1.0).stages[0].blocks[0].mixer
    assert made.state == 5 and made.inner == 48
    assert model(NoncausalSSD, expansion=2.0).stages[0].blocks[0].mixer.inner == 32
    assert isinstance(model(lambda dim, device, dtype: nn.Linear(dim, dim)).stages[1].blocks[1].mixer, nn.Linear)


def test_the_own_mixer_is_one_of_the_table() -> None:
    """S6 by its name: the same but for options that are VMamba's."""
    own, named = timm.create_model("vmamba_tiny", **SMALL), model("s6")
    assert isinstance(own.stages[0].blocks[0].mixer, SS2D) and own.state_dict().keys() == named.state_dict().keys()


def test_an_unknown_mixer_is_named() -> None:
    with pytest.raises(ValueError, match="known: s6, ssd, noncausal_ssd, hydra, tree, wavefront"):
        model("mamba")
    with pytest.raises(ValueError, match="mixer is 3; expected a class or function"):
        model(3)
    assert resolve_mixer(SSD) is SSD
