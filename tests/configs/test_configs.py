"""Every config is read, built and steps once; sizes that cost minutes are cut, and only those."""

from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS

from vssm.mm.runtime.config import check_config, load_config
from vssm.mm.runtime.optim import GroupMatcherOptimWrapperConstructor

ROOT = Path(__file__).resolve().parents[2] / "configs"
FAMILIES = ("vim", "vmamba", "msvmamba", "efficientvmamba")
CONFIGS = sorted((ROOT / "classification").rglob("*.py"))


def ident(path: Path) -> str:
    return path.stem


def load(path: Path) -> Config:
    config = load_config(path)
    # Weights to start from are downloads; their loading has tests of its own.
    for name in ("pretrained", "pretrained_cfg_overlay"):
        config.model.backbone.pop(name, None)
    return config


def smallest(name: str) -> dict:
    """Arguments that cut the depth of a model to one block a stage."""
    return {"depth": 1} if name.startswith("vim") else {"depths": (1, 1, 1, 1)}


def test_there_is_a_config_of_every_published_model():
    names = {load(path).model.backbone.model_name for path in CONFIGS if path.stem.endswith("_in1k")}
    aliases = {"vmamba_tiny", "vmamba_small", "vmamba_base"}
    assert names == {name for module in FAMILIES for name in timm.list_models(module=module)} - aliases


@pytest.mark.parametrize("path", CONFIGS, ids=ident)
def test_head_names_command_cost_and_score(path):
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for part, line in zip(("# Command: ", "# Cost: ", "# Score: "), head, strict=False):
        assert line.startswith(part)
    relative = f"configs/{path.relative_to(ROOT)}"
    assert relative in head[0] or "tools/demo.py" in head[0]


@pytest.mark.parametrize("path", CONFIGS, ids=ident)
def test_full_model_is_built(path):
    """At its full size, on the meta device, which costs no memory."""
    arguments = dict(load(path).model.backbone)
    model = timm.create_model(**arguments, device="meta")
    assert model.num_classes == arguments["num_classes"]


@pytest.mark.parametrize("path", CONFIGS, ids=ident)
def test_steps_once(path):
    """Two images through preprocessor, model, loss and optimiser, as the config says but with few blocks."""
    torch.manual_seed(0)
    config = load(path)
    check_config(config)
    arguments = config.model.backbone
    arguments.update(smallest(arguments.model_name))
    size = config.train_dataloader.dataset.transform.input_size
    if "img_size" not in arguments:
        size = 64
        if arguments.model_name.startswith("vim"):
            arguments.img_size = size
    config.model.setdefault("data_preprocessor", config.data_preprocessor)
    model = MODELS.build(config.model)
    wrapper = dict(config.optim_wrapper)
    assert wrapper.pop("constructor") == "GroupMatcherOptimWrapperConstructor"
    optimizer = GroupMatcherOptimWrapperConstructor(wrapper)(model)
    before = {name: value.clone() for name, value in model.named_parameters()}
    batch = {
        "inputs": torch.randn(2, 3, size, size),
        "label": torch.tensor([1, 3]),
        "path": ["a", "b"],
    }
    log = model.train().train_step(batch, optimizer)
    assert torch.isfinite(log["loss"])
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    # Drop path may leave out any block of such a shallow model, never the stem and the classifier.
    assert {
        name for name in before if name.startswith(("backbone.stem", "backbone.patch_embed", "backbone.head"))
    } <= moved


@pytest.mark.parametrize("path", CONFIGS, ids=ident)
def test_data_sets_are_known(path):
    config = load(path)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert DATASETS.get(loader.dataset.type) is not None
        classes = loader.dataset.get("num_classes", 10)
        assert classes == config.model.backbone.num_classes
