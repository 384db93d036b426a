"""Every config of classification is read, built and steps once; sizes that cost minutes are cut, and only those."""

from copy import deepcopy
from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS
from recipes import RECIPES, check_head, configs, ident, loaded, quick

from vssm.mm.runtime.optim import GroupMatcherOptimWrapperConstructor

ROWS = {recipe.path: recipe for recipe in RECIPES}
every_config = pytest.mark.parametrize("path", configs("classification"), ids=ident)


def load(path: str) -> Config:
    return deepcopy(loaded(path))


@every_config
def test_head_states_command_cost_and_score(path):
    score = check_head(path, load(path))
    published = ROWS[path].numbers["published"] if path in ROWS and not path.endswith("_shapes.py") else {}
    for key, name in (("top1", "top-1"), ("top5", "top-5")):
        assert (f" {published.get(key)} % {name}" in score) == (key in published)


@every_config
def test_name_is_that_of_the_model(path):
    if path in ROWS:
        folder, stem = Path(path).parts[-2:]
        assert stem.startswith(f"{load(path).model.backbone.name}_")
        assert folder == ROWS[path].family.name


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: ident(recipe.path))
def test_text_of_a_written_config_is_what_its_recipe_says(recipe):
    found = {}
    exec(recipe.text(), found)
    assert {key: found[key] for key in recipe.config()} == recipe.config()
    assert max(map(len, recipe.text().splitlines()[3:])) <= 120


@every_config
def test_full_model_is_built(path):
    """At its full size, on the meta device, which costs no memory."""
    arguments = dict(load(path).model.backbone)
    model = timm.create_model(arguments.pop("name"), **arguments, device="meta")
    assert model.num_classes == arguments["num_classes"]


@every_config
def test_steps_once(path):
    """Two images through preprocessor, model, loss and optimiser, as the config says but with a small model."""
    torch.manual_seed(0)
    config = load(path)
    config.model.backbone.update(quick(config.model.backbone.name))
    config.model.setdefault("data_preprocessor", config.data_preprocessor)
    model = MODELS.build(config.model)
    wrapper = dict(config.optim_wrapper)
    assert wrapper.pop("constructor") == "GroupMatcherOptimWrapperConstructor"
    optimizer = GroupMatcherOptimWrapperConstructor(wrapper)(model)
    before = {name: value.clone() for name, value in model.named_parameters()}
    batch = {"inputs": torch.randn(2, 3, 64, 64), "label": torch.tensor([1, 3]), "path": ["a", "b"]}
    log = model.train().train_step(batch, optimizer)
    assert torch.isfinite(log["loss"])
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    # Drop path may leave out any block of such a shallow model, never the stem and the classifier.
    classifiers = model.backbone.classifier
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    ends = tuple(f"backbone.{name}." for name in (model.backbone.first_conv, *classifiers))
    assert {name.rsplit(".", 1)[0] + "." for name in moved} >= set(ends)
    assert {name for name in before if name.startswith(ends)} <= moved


@every_config
def test_data_sets_are_known(path):
    config = load(path)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert DATASETS.get(loader.dataset.type) is not None
        classes = loader.dataset.get("num_classes", 10)
        assert classes == config.model.backbone.num_classes
