"""The recipes of detection and segmentation are read, built, counted and step once, and agree with what they state."""

import functools
from copy import deepcopy

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from PIL import Image
from recipes import RECIPES, SOURCES, check_head, configs, ident, loaded, one_block_a_stage
from torch import nn

from vssm.bench.flops import count_flops
from vssm.mm.tasks.complexity import SIZES, build_model, compute, data_samples
from vssm.models import Backbone

ROWS = {recipe.path: recipe for recipe in RECIPES if recipe.published and not recipe.classifies}
# The smallest of each kind of recipe.
KINDS = {
    recipe.name: recipe.path for recipe in sorted(ROWS.values(), key=lambda row: -row.numbers.get("parameters", 0))
}

every_recipe = pytest.mark.parametrize("recipe", ROWS, ids=ident)
every_kind = pytest.mark.parametrize("recipe", KINDS.values(), ids=list(KINDS))


def load(recipe: str) -> Config:
    return deepcopy(loaded(recipe))


def image_size(config: Config) -> tuple[int, int]:
    """What operations are counted at: the usual size of the task, or the only one that the recipe has."""
    fixed = config.model.backbone.get("img_size")
    return (fixed, fixed) if fixed and config.default_scope == "mmdet" else SIZES[config.default_scope]


def test_what_is_no_recipe_trains_on_the_embedded_set_or_a_folder():
    others = {*configs("detection"), *configs("segmentation")} - set(ROWS)
    assert others and all(path.endswith(("_shapes.py", "_masks.py")) for path in others)


@every_recipe
def test_numbers_are_in_the_results(recipe):
    sentence = "count them (python tools/benchmark.py heads CONFIG), and write them to model_cards/results.yaml"
    assert {"parameters", "gflops"} <= set(ROWS[recipe].numbers), sentence


def test_results_are_those_of_recipes():
    stated = {
        (family.name, kind, model)
        for family in SOURCES.families
        for kind, models in SOURCES.numbers(family).get("downstream", {}).items()
        for model in models
    }
    assert stated == {(row.family.name, row.name, row.model) for row in ROWS.values()}


@every_recipe
def test_head_states_command_cost_and_score(recipe):
    published = ROWS[recipe].numbers.get("published")
    stated = f"# Score: {published['score']}" if published else "# Score: none is known here."
    assert check_head(recipe, load(recipe)).startswith(stated)


@every_recipe
def test_learning_rate_falls_until_the_end(recipe):
    config = load(recipe)
    warmup, decay = config.param_scheduler
    by_epoch = "max_epochs" in config.train_cfg
    length = config.train_cfg.max_epochs if by_epoch else config.train_cfg.max_iters
    assert decay.end == length and decay.by_epoch == by_epoch
    assert all(milestone < length for milestone in decay.get("milestones", ()))
    assert not warmup.by_epoch and warmup.end <= 1500


@every_recipe
def test_saves_evaluates_and_logs_in_the_unit_that_the_training_counts(recipe):
    config = load(recipe)
    by_epoch = "max_epochs" in config.train_cfg
    checkpoint = config.default_hooks.checkpoint
    assert checkpoint.get("by_epoch", True) == config.log_processor.by_epoch == by_epoch
    assert checkpoint.interval == config.train_cfg.val_interval
    assert checkpoint.save_best == ("mIoU" if config.default_scope == "mmseg" else "coco/bbox_mAP")


# Learning rate, weight decay, layer decay, share of the training after which the rate first falls.
PUBLISHED = {
    "mask_rcnn_1x": (1e-4, 0.05, None, 8 / 12),
    "mask_rcnn_3x": (1e-4, 0.05, None, 27 / 36),
    "mask_rcnn_adapter_1x": (1e-4, 0.05, None, 8 / 12),
    "retinanet_adapter_1x": (1e-4, 0.05, None, 8 / 12),
    "cascade_mask_rcnn_4conv_3x": (1e-4, 0.05, None, 27 / 36),
    "cascade_mask_rcnn_vim_100e": (1e-4, 0.1, 0.837, 163889 / 184375),
    "cascade_mask_rcnn_lbvim_50e": (1e-4, 0.05, None, 163889 / 184375),
    "mask_rcnn_vitdet_100e": (1e-4, 0.05, None, 163889 / 184375),
    "upernet_160k": (6e-5, 0.01, None, 1500 / 160000),
    "upernet_640_160k": (8e-5, 0.05, None, 1500 / 160000),
    "upernet_vim_60k": (2e-4, 0.1, 0.92, 1500 / 60000),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_bases_add_up_to_what_is_published(kind):
    """A recipe is put together from shared parts: a change for one must not change the others."""
    config = load(KINDS[kind])
    optimizer, decay = config.optim_wrapper.optimizer, config.param_scheduler[1]
    falls = decay.milestones[0] if "milestones" in decay else decay.begin
    layer_decay = config.optim_wrapper.paramwise_cfg.get("layer_decay")
    assert (optimizer.lr, optimizer.weight_decay, layer_decay, falls / decay.end) == PUBLISHED[kind]


@functools.cache
def counted(model: str, scope: str, size: tuple[int, int]) -> tuple[int, float]:
    """Parameters, and GFLOPs at a size, of a model; 1x and 3x have the same."""
    built = build_model(Config.fromstring(f"model = {model}\ndefault_scope = {scope!r}", ".py"), "meta")
    flops = count_flops(lambda: compute(built, torch.empty(1, 3, *size, device="meta")))
    return sum(parameter.numel() for parameter in built.parameters()), flops.total / 1e9


@every_recipe
def test_sizes_are_those_of_the_model(recipe):
    """At full size, on the meta device, through backbone, neck and heads."""
    config, numbers = load(recipe), ROWS[recipe].numbers
    parameters, gflops = counted(repr(config.model.to_dict()), config.default_scope, image_size(config))
    assert parameters == numbers["parameters"]
    assert gflops == pytest.approx(numbers["gflops"], abs=0.06)
    published = numbers.get("published", {})
    if "parameters" in published:
        agrees = abs(parameters / 1e6 - float(published["parameters"][:-1])) < 0.8
        assert agrees != ("parameters" in published.get("differs", ()))


@pytest.mark.parametrize("recipe", [path for path, row in ROWS.items() if "flops" in row.numbers.get("published", {})])
def test_count_agrees_with_the_published_one(recipe):
    """Within the scan's share, 3 % of the whole at most, for authors who leave the scan out."""
    row = ROWS[recipe]
    published = row.numbers["published"]
    tolerance = {"total": 0.006, "products": 0.035}[SOURCES.numbers(row.family)["published_flops"]]
    agrees = abs(row.numbers["gflops"] / published["flops"] - 1) < tolerance
    assert agrees != ("flops" in published.get("differs", ()))


SLOWER = ("layer_decay", "lr_mult")  # what slows parts of a backbone


@every_recipe
def test_pipelines_and_optimiser_are_built(recipe):
    config = load(recipe)
    init_default_scope(config.default_scope)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert len(Compose([TRANSFORMS.build(step) for step in loader.dataset.pipeline]).transforms) > 2
    with torch.device("meta"):
        model = nn.ModuleDict({"backbone": MODELS.build(shallow_backbone(config)), "head": nn.Conv2d(3, 3, 1)})
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    assert set(groups) == set(model.parameters())
    timms = next(part for part in model.modules() if isinstance(part, Backbone))
    officially = {name for name, _ in timms.named_parameters() if "norm" in "".join(timms.renaming.official(name))}
    assert officially and groups[model["head"].weight]["weight_decay"] > 0
    assert not [name for name in officially if groups[timms.get_parameter(name)]["weight_decay"]]
    rates = {group["lr"] for group in optimizer.param_groups}
    assert max(rates) == groups[model["head"].weight]["lr"] == config.optim_wrapper.optimizer.lr
    assert (len(rates) > 1) == any(option in str(config.optim_wrapper.paramwise_cfg) for option in SLOWER)


def shallow_backbone(config: Config) -> ConfigDict:
    """The backbone with one block a stage, and windows to which small maps are not padded."""
    backbone = config.model.backbone
    backbone.update(one_block_a_stage(backbone.name, len(backbone.out_indices)))
    if "windows" in backbone:
        backbone.windows = [8, 4]
    return backbone


def shallow(config: Config) -> nn.Module:
    """The model with a shallow backbone, and few regions for its heads."""
    model = config.model
    shallow_backbone(config)
    if model.backbone.name.startswith("mambavision_large"):  # too wide for a test
        model.backbone.dims = model.decode_head.in_channels = [32, 64, 128, 256]
        model.auxiliary_head.in_channels = 128
    model.data_preprocessor.pop("batch_augments", None)
    if "roi_head" in model:
        stages = model.train_cfg.rcnn if isinstance(model.train_cfg.rcnn, list) else [model.train_cfg.rcnn]
        for stage in stages:
            stage.sampler.num = 4
    return build_model(config, "cpu")


@every_kind
def test_steps_once(recipe):
    """Two images through preprocessor, model, loss and optimiser; the stem and the heads move."""
    torch.manual_seed(0)
    config = load(recipe)
    model = shallow(config)
    model.init_weights()
    # In float32: a CPU without bfloat16 convolves in it for minutes. tests/tools/test_scenes.py trains in bfloat16.
    optimizer = build_optim_wrapper(model, {**config.optim_wrapper, "type": "OptimWrapper"})
    samples = data_samples(config, (64, 96), 2)
    for sample in samples:
        if config.default_scope == "mmseg":
            sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, 64, 96)))
        else:
            sample.gt_instances = truth()
            sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
    if config.default_scope == "mmseg":
        model.data_preprocessor.size = (64, 96)
    before = {name: value.clone() for name, value in model.named_parameters()}
    images = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8) for _ in samples]
    log = model.train().train_step({"inputs": images, "data_samples": samples}, optimizer)
    assert torch.isfinite(log["loss"])
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert any(name.startswith(f"backbone.model.{model.backbone.model.first_conv}.") for name in moved)
    parts = {name.split(".")[0] for name in before}
    assert {name.split(".")[0] for name in moved} == parts


def truth() -> InstanceData:
    """Two objects of an image of 64 x 96 pixels, boxes and masks."""
    from mmdet.structures.mask import BitmapMasks

    boxes = torch.tensor([[4.0, 4, 40, 50], [50, 20, 90, 60]])
    masks = np.zeros((2, 64, 96), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return InstanceData(bboxes=boxes, labels=torch.tensor([3, 70]), masks=BitmapMasks(masks, 64, 96))


@every_kind
@pytest.mark.parametrize("split", ["train", "val"])
def test_pipeline_prepares_an_image(recipe, split, tmp_path):
    config = load(recipe)
    init_default_scope(config.default_scope)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(np.full((300, 400), 7, np.uint8)).save(tmp_path / "map.png")
    record = {"img_path": str(tmp_path / "image.png"), "img_id": 1, "height": 300, "width": 400}
    if config.default_scope == "mmseg":
        record |= {"seg_map_path": str(tmp_path / "map.png"), "reduce_zero_label": True, "seg_fields": [],
                   "label_map": None}  # fmt: skip
    else:
        polygon = [50, 50, 350, 50, 350, 250, 50, 250]
        record["instances"] = [{"bbox": [50, 50, 350, 250], "bbox_label": 3, "mask": [polygon], "ignore_flag": 0}]
    np.random.seed(0)
    pipeline = getattr(config, f"{split}_dataloader").dataset.pipeline
    packed = Compose([TRANSFORMS.build(step) for step in pipeline])(record)
    _channels, height, width = packed["inputs"].shape
    if config.default_scope == "mmseg":
        assert packed["data_samples"].gt_sem_seg.data.unique().tolist() == [6]
        pixels, _ = config.model.data_preprocessor.size
        assert max(height, width) <= pixels if split == "train" else (height, width) == (pixels, round(pixels * 4 / 3))
    elif "img_size" in config.model.backbone and split == "val":
        assert (height, width) == image_size(config)
    else:
        assert max(height, width) <= 1333
        assert split == "train" or (height, width) == (800, 1067)
    if split == "train" and config.default_scope == "mmdet":
        assert packed["data_samples"].gt_instances.labels.tolist() == [3]
