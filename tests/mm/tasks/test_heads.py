"""mmdet's and mmseg's heads on small backbones: losses, gradients, predictions, and the runner's additions."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from torch import nn

from vssm.errors import ConfigError
from vssm.mm.tasks.precision import keep_logits_exact, keep_regions_exact
from vssm.mm.tasks.runner import check_classes, ignored_by_heads
from vssm.mm.tasks.weights import classes_of_heads

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmseg.structures import SegDataSample

Build = Callable[[str], nn.Module]

CLASSES = 3
PYRAMID = {
    "_delete_": True,
    "type": "VSSMBackbone",
    "name": "vmamba_tiny",
    "dims": (8, 16, 32, 64),
    "depths": (1, 1, 1, 1),
}
PLAIN = {"_delete_": True, "type": "VSSMBackbone", "name": "vim_tiny", "embed_dim": 32, "depth": 2, "img_size": 64}
NECK = {"in_channels": [8, 16, 32, 64], "out_channels": 16}
HEAD = {"num_classes": CLASSES, "in_channels": 16}
SEGMENTOR = {"channels": 16, "num_classes": CLASSES, "norm_cfg": {"type": "BN"}}
MODELS_OF = {
    "mask_rcnn": (
        "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
        {
            "backbone": PYRAMID,
            "neck": NECK,
            "rpn_head": {"in_channels": 16, "feat_channels": 16},
            "roi_head": {
                "bbox_roi_extractor": {"out_channels": 16},
                "mask_roi_extractor": {"out_channels": 16},
                "bbox_head": {**HEAD, "fc_out_channels": 32},
                "mask_head": {**HEAD, "conv_out_channels": 16, "num_convs": 1},
            },
        },
    ),
    # A plain model, with a pyramid of its last map.
    "retinanet": (
        "mmdet::_base_/models/retinanet_r50_fpn.py",
        {
            "backbone": {**PLAIN, "out_indices": (1,)},
            "neck": {
                "_delete_": True,
                "type": "SimpleFeaturePyramid",
                "in_channels": 32,
                "out_channels": 16,
                "num_outs": 5,
            },
            "bbox_head": {
                **HEAD,
                "feat_channels": 16,
                "stacked_convs": 1,
                "anchor_generator": {"strides": [4, 8, 16, 32, 64]},
            },
        },
    ),
    "upernet": (
        "mmseg::_base_/models/upernet_swin.py",
        {
            "data_preprocessor": {"size": (64, 64)},
            "backbone": PYRAMID,
            "decode_head": {**SEGMENTOR, "in_channels": [8, 16, 32, 64]},
            "auxiliary_head": {**SEGMENTOR, "in_channels": 32},
        },
    ),
}


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Build a model from the base config of mmdet or mmseg, made small."""

    def make(name: str) -> nn.Module:
        base, changes = MODELS_OF[name]
        path = tmp_path / f"{name}.py"
        path.write_text(f"_base_ = {base!r}\nmodel = {changes!r}\n")
        init_default_scope(base.partition("::")[0])
        torch.manual_seed(0)
        return MODELS.build(Config.fromfile(path).model)

    return make


def objects() -> DetDataSample:
    """Two objects, with masks, on an image of 64 x 56 pixels."""
    sample = DetDataSample(metainfo={"img_shape": (56, 64), "ori_shape": (56, 64), "scale_factor": (1.0, 1.0)})
    masks = torch.zeros(2, 56, 64, dtype=torch.uint8)
    masks[0, 4:30, 4:40], masks[1, 20:56, 30:60] = 1, 1
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[4.0, 4.0, 40.0, 30.0], [30.0, 20.0, 60.0, 56.0]]),
        labels=torch.tensor([0, 2]),
        masks=BitmapMasks(masks.numpy(), 56, 64),
    )
    return sample


def class_map() -> SegDataSample:
    """Three classes, and ignored pixels."""
    shape = {"img_shape": (64, 64), "ori_shape": (64, 64)}
    sample = SegDataSample(metainfo=shape)
    numbers = torch.arange(64 * 64).reshape(1, 64, 64) * 3 // (64 * 64)
    numbers[:, :, :5] = 255
    sample.gt_sem_seg = PixelData(data=numbers)
    return sample


def batch(name: str) -> dict:
    torch.manual_seed(1)
    sample = class_map if name == "upernet" else objects
    height = 64 if name == "upernet" else 56
    images = torch.randint(0, 255, (2, 3, height, 64), dtype=torch.uint8)
    return {"inputs": list(images), "data_samples": [sample(), sample()]}


@pytest.mark.parametrize("name", MODELS_OF)
def test_losses_reach_every_parameter(build, name):
    model = build(name).train()
    data = model.data_preprocessor(batch(name), training=True)
    losses = model(**data, mode="loss")
    total, told = model.parse_losses(losses)
    assert torch.isfinite(total) and total > 0 and len(told) > 2
    total.backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("name", MODELS_OF)
def test_predictions_have_the_size_of_the_image(build, name):
    model = build(name).eval()
    if name == "retinanet":
        # A new head is sure of nothing; without its bias it finds something in noise.
        nn.init.zeros_(model.bbox_head.retina_cls.bias)
    with torch.inference_mode():
        first, _ = model.test_step(batch(name))
    if name == "upernet":
        assert first.pred_sem_seg.data.shape == (1, 64, 64)
        assert first.seg_logits.data.shape == (CLASSES, 64, 64)
        return
    found = first.pred_instances
    assert 0 < len(found) <= 100
    assert found.bboxes.shape == (len(found), 4) and set(found.labels.tolist()) <= set(range(CLASSES))
    assert found.bboxes.min() >= 0 and found.bboxes[:, 2].max() <= 64 and found.bboxes[:, 3].max() <= 56
    if name == "mask_rcnn":
        assert found.masks.shape == (len(found), 56, 64) and found.masks.dtype == torch.bool


def test_regions_are_not_rounded_in_mixed_precision(build):
    model = build("mask_rcnn")
    extractor = model.roi_head.bbox_roi_extractor
    maps = [torch.randn(1, 16, 256 // 2**i, 256 // 2**i).bfloat16().float() for i in range(4)]
    regions = torch.tensor([[0, 900.0, 901.0, 931.0, 942.0]])  # bfloat16 has 900, 904, ...
    exact = extractor(maps, regions)
    halves = [each.bfloat16() for each in maps]
    assert not torch.allclose(extractor(halves, regions).float(), exact, atol=0.05)
    keep_regions_exact(model)
    torch.testing.assert_close(extractor(halves, regions), exact)


@pytest.mark.parametrize("name", ["mask_rcnn", "retinanet"])
def test_boxes_are_in_float32_in_mixed_precision(build, name):
    """Of a trained network's proposals those beyond 512 pixels were multiples of 4, and no metric took the scores."""
    model = build(name).eval()
    keep_regions_exact(model)
    head = model.rpn_head if name == "mask_rcnn" else model.bbox_head
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        outputs = head([torch.randn(1, 16, 128 // 2**i, 128 // 2**i) for i in range(5)])
        proposals = head.predict_by_feat(*outputs, batch_img_metas=[{"img_shape": (512, 1024), "scale_factor": (1, 1)}])
        (found, _) = model.test_step(batch(name))
    assert proposals[0].bboxes.dtype == found.pred_instances.bboxes.dtype == torch.float32
    assert found.pred_instances.scores.dtype == torch.float32


def test_class_maps_are_of_float32_logits_in_mixed_precision(build):
    """Logits resized in bfloat16 have equal maxima, of which the first class was taken."""
    model = build("upernet").eval()
    keep_logits_exact(model)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        (first, _) = model.test_step(batch("upernet"))
    logits = first.seg_logits.data
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())


def test_classes_of_data_and_heads_are_compared(build):
    class Data:
        metainfo = {"classes": ("a", "b")}  # noqa: RUF012

    model = build("mask_rcnn")
    assert classes_of_heads(model) == {"roi_head.bbox_head": CLASSES, "roi_head.mask_head": CLASSES}
    with pytest.raises(ConfigError, match=r"2 classes, but the model 3: set model.roi_head.bbox_head.num_classes=2"):
        check_classes(model, Data())
    Data.metainfo = {"classes": ("a", "b", "c")}
    check_classes(model, Data())
    assert classes_of_heads(build("upernet")) == {"decode_head": CLASSES, "auxiliary_head": CLASSES}
    assert ignored_by_heads(build("mask_rcnn")) == ()
    options = ("model.decode_head.ignore_index", "model.auxiliary_head.ignore_index")
    assert sorted(ignored_by_heads(build("upernet"))) == sorted((option, 255) for option in options)
