"""The configs of detection and segmentation on the embedded set: read, built, and one step of the small ones."""

import os
from pathlib import Path

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, DefaultScope
from recipes import check_head, configs, ident, loaded

from vssm.data import KINDS
from vssm.mm.tasks.complexity import build_model
from vssm.mm.tasks.weights import classes_of_heads

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
CONFIGS = [path for task in ("detection", "segmentation") for path in configs(task) if path.endswith("_shapes.py")]
every_config = pytest.mark.parametrize("name", CONFIGS, ids=ident)
every_small_config = pytest.mark.parametrize("name", [name for name in CONFIGS if "demo" in name], ids=ident)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    return tmp_path_factory.mktemp("shapes")


def test_each_head_has_a_small_and_a_full_size_config() -> None:
    heads = ("mask_rcnn", "retinanet", "upernet")
    found = {(head, "demo" in name) for name in CONFIGS for head in heads if ident(name).startswith(f"{head}_")}
    assert found == {(head, small) for head in heads for small in (True, False)}


@every_config
def test_head_states_command_cost_and_score(name: str) -> None:
    assert "held-out" in check_head(name, loaded(name))


@every_config
def test_model_is_built_for_the_classes_of_the_data(name: str) -> None:
    """On the meta device; anchors and heads have the strides and channels of the maps."""
    config = loaded(name)
    model = build_model(config, "meta")
    count = len(KINDS)
    if config.default_scope == "mmseg":
        assert set(classes_of_heads(model).values()) == {count + 1}
        head = model.decode_head
        assert list(head.in_channels) == [model.backbone.channels[index] for index in head.in_index]
    elif "retinanet" in name:
        assert model.bbox_head.num_classes == count
        assert [pair[0] for pair in model.bbox_head.prior_generator.strides][:3] == model.backbone.strides
    else:
        assert model.roi_head.bbox_head.num_classes == model.roi_head.mask_head.num_classes == count
        assert [pair[0] for pair in model.rpn_head.prior_generator.strides][:4] == model.backbone.strides
    sizes = {config[f"{split}_dataloader"].dataset.image_size for split in ("train", "val", "test")}
    assert len(sizes) == 1


@every_small_config
def test_steps_once_and_predicts(name: str, root: Path) -> None:
    """Two scenes through transforms, model, losses and optimiser; every parameter learns."""
    torch.manual_seed(0)
    config = loaded(name)
    data = {**config.train_dataloader.dataset, "root": str(root), "train": 10, "val": 10, "image_size": 96}
    with DefaultScope.overwrite_default_scope(config.default_scope):
        dataset = DATASETS.build(data)
        batch = pseudo_collate([dataset[0], dataset[1]])
        model = MODELS.build(config.model)
        model.init_weights()
        optimizer = build_optim_wrapper(model, config.optim_wrapper)
        before = {key: value.clone() for key, value in model.named_parameters()}
        log = model.train().train_step(batch, optimizer)
        assert torch.isfinite(log["loss"])
        still = {key for key, value in model.named_parameters() if value.requires_grad and value.equal(before[key])}
        assert not still
        dataset = DATASETS.build({**config.val_dataloader.dataset, **dict(root=str(root), train=10, val=10)})
        model.eval()
        (sample,) = model.test_step(pseudo_collate([dataset[0]]))
    if config.default_scope == "mmseg":
        assert sample.pred_sem_seg.data.shape == (1, 96, 96)
    else:
        assert sample.pred_instances.bboxes.shape[1] == 4
