"""What timm sees of a declaration: ordinary entry points and configurations."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Iterator
from dataclasses import replace

import pytest
import timm
import torch
from timm.models._registry import _clear_model_entries

from vssm.models import FAMILIES, Family, Variant, VMamba, register


class StubVMamba(VMamba):
    """Registered from a module of its own."""


@pytest.fixture(scope="module")
def stub() -> Iterator[Family]:
    """A family of a module of its own, known to timm while the tests of this file run."""
    small = {"dims": (8, 16), "depths": (1, 1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "stub_family", types.ModuleType("stub_family"))
        patch.setattr(StubVMamba, "__module__", "stub_family")
        family = replace(
            FAMILIES["vmamba"],
            title="Stub",
            model=StubVMamba,
            owner="someone",
            variants=(
                Variant("stub_tiny", "Stub-T", small, "https://example.org/stub.pth", aliases=("stub",)),
                Variant("stub_base", "Stub-B", {**small, "num_classes": 7}, "https://drive.google.com/file/d/1/view"),
                Variant("stub_none", "Stub-N", small),
            ),
            deprecated={"stub_old": "stub_tiny", "stub_gone": None},
        )
        register(family)
        yield family
    for name in (*family.models, *family.deprecated):
        _clear_model_entries(name)


def test_entry_points_are_ordinary_ones(stub: Family) -> None:
    module = sys.modules["stub_family"]
    assert timm.list_models(module="stub_family") == ["stub", "stub_base", "stub_none", "stub_tiny"]
    assert set(module.__all__) >= {"stub", "stub_base", "stub_none", "stub_tiny"}
    entry_point = timm.model_entrypoint("stub")
    assert entry_point is module.stub and entry_point.__module__ == "stub_family"
    assert entry_point.__name__ == entry_point.__qualname__ == "stub"
    assert entry_point.__doc__.startswith("Stub-T; the same as stub_tiny (arXiv")
    assert pickle.loads(pickle.dumps(entry_point)) is entry_point
    model = timm.create_model("stub_base", depths=(1, 2))
    assert isinstance(model, StubVMamba) and model.num_classes == 7 and len(model.stages[1].blocks) == 2


def test_configurations_say_where_weights_are(stub: Family) -> None:
    assert set(timm.list_pretrained("stub*")) == {"stub.someone_in1k", "stub_tiny.someone_in1k"}
    cfg = timm.get_pretrained_cfg("stub_tiny")
    assert (cfg.url, cfg.tag, cfg.license) == ("https://example.org/stub.pth", "someone_in1k", stub.license)
    assert timm.get_pretrained_cfg("stub_base").notes == ("https://drive.google.com/file/d/1/view",)
    with pytest.raises(ValueError, match="with a browser"):
        timm.create_model("stub_base", pretrained=True)
    with pytest.raises(ValueError, match=f"get the file from {stub.repository}"):
        timm.create_model("stub_none", pretrained=True)


def test_deprecated_names_warn(stub: Family) -> None:
    with pytest.warns(UserWarning, match="deprecated model name stub_old to current stub_tiny"):
        assert isinstance(timm.create_model("stub_old"), StubVMamba)
    with pytest.raises(AssertionError, match="stub_gone has been removed"):
        timm.create_model("stub_gone")
    assert "stub_old" not in timm.list_models(module="stub_family")


def test_features_only_gives_all_stages_of_a_pyramid(stub: Family) -> None:
    model = timm.create_model("stub_tiny", features_only=True, depths=(1, 1, 1), dims=(8, 8, 8))
    assert [tuple(x.shape[1:]) for x in model(torch.randn(1, 3, 32, 64))] == [(8, 8, 16), (8, 4, 8), (8, 2, 4)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_offers_its_filter_as_timm_files_do(family: str) -> None:
    module = sys.modules[FAMILIES[family].model.__module__]
    name = FAMILIES[family].variants[0].name
    assert callable(module.checkpoint_filter_fn) and name in module.default_cfgs and callable(getattr(module, name))
