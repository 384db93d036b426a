"""Costs of whole models: rows of both kinds of heads; counts of full-size recipes are in tests/configs."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from vssm.mm.runtime.config import load_config
from vssm.mm.tasks.complexity import BOX_REGIONS, MASK_REGIONS, benchmark_config, build_model, model_flops

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def tiny(recipe: str) -> Config:
    config = load_config(CONFIGS / recipe)
    config.model.backbone.update(depths=(1, 1, 1, 1), pretrained=False)
    return config


@pytest.mark.parametrize(
    "recipe",
    [
        "detection/efficientvmamba/retinanet_efficientvmamba_tiny_1x_coco.py",
        "segmentation/efficientvmamba/upernet_efficientvmamba_tiny_160k_ade20k.py",
    ],
)
def test_rows_of_backbone_and_whole(recipe):
    backbone, whole = benchmark_config(tiny(recipe), (64, 96), 2, torch.device("cpu"), torch.float32, seconds=0)
    assert (backbone["part"], whole["part"], whole["size"]) == ("backbone", "whole", "64x96")
    for row in (backbone, whole):
        assert row["images_per_second"] == pytest.approx(2 / (row["ms"] / 1e3))
    for column in ("parameters_m", "gflops"):
        assert 0 < backbone[column] < whole[column]


def test_regions_are_counted_by_their_number():
    """Of Mask R-CNN's heads, every region costs the same; those of the boxes are two linear layers and two outputs."""
    config = tiny("detection/efficientvmamba/mask_rcnn_efficientvmamba_tiny_1x_coco.py")
    model = build_model(config, "meta")
    flops = model_flops(model, 64, 64)[1].products
    masks = model.roi_head.mask_head
    model.roi_head.bbox_head = model.roi_head.mask_head = torch.nn.Identity()
    box = 128 * 7 * 7 * 512 + 512 * 512 + 512 * (81 + 4 * 80)
    convolutions = sum(m.weight.numel() for m in masks.modules() if isinstance(m, torch.nn.Conv2d))
    logits = masks.conv_logits.weight.numel()
    mask = 14 * 14 * (convolutions - logits) + 14 * 14 * masks.upsample.weight.numel() + 28 * 28 * logits
    assert flops - model_flops(model, 64, 64)[1].products == BOX_REGIONS * box + MASK_REGIONS * mask
