"""Res-VMamba: official files, which lack the residuals, and maps of odd size."""

import timm
import torch
from families import KINDS

from vssm.models import load_checkpoint, official_state_dict
from vssm.models.res_vmamba import ResidualMerging

NAME, ARGUMENTS = next(kind for kind in KINDS if kind[0] == "res_vmamba_tiny")


def test_official_files_are_read_without_residuals(tmp_path):
    """Zeros take their place; files of ours, which have them, keep them."""
    saved, loaded, again = (timm.create_model(NAME, **ARGUMENTS) for _ in range(3))
    official = {name: value for name, value in official_state_dict(saved).items() if "residual_fuse" not in name}
    assert len(official) == len(saved.state_dict()) - 6
    torch.save({"model": official}, tmp_path / "official.pth")
    load_checkpoint(loaded, tmp_path / "official.pth")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, torch.zeros_like(value) if ".residual." in name else saved.state_dict()[name])
    torch.save(saved.state_dict(), tmp_path / "ours.pth")
    load_checkpoint(again, tmp_path / "ours.pth")
    weights = saved.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())


def test_the_largest_at_an_odd_border_is_that_of_what_is_there():
    merging = ResidualMerging(1, 1)
    torch.nn.init.ones_(merging.residual.weight)
    torch.nn.init.zeros_(merging.residual.bias)
    torch.nn.init.zeros_(merging.merging.reduction.weight)
    x = -torch.arange(9.0).add(1).view(1, 3, 3, 1)
    assert merging(x, x).flatten().tolist() == [-1, -3, -7, -9]
