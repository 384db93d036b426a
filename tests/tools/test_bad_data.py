"""Missing and bad data of detection and segmentation end tools/train.py with one sentence, not a traceback."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vssm import cli
from vssm.data import ensure_shapes
from vssm.data.layouts import ADE20K

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DETECTOR = CONFIGS / "detection/efficientvmamba/retinanet_efficientvmamba_demo_shapes.py"
SEGMENTOR = CONFIGS / "segmentation/vmamba/upernet_vmamba_demo_shapes.py"


@pytest.fixture
def error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Callable[..., str]:
    """Train in an empty directory; returns the sentence with which the training ends."""
    monkeypatch.chdir(tmp_path)

    def call(config: Path, *options: str) -> str:
        name = f"experiment_name=bad_{tmp_path.name}"
        assert cli.train([str(config), "--cfg-options", name, "log_level=ERROR", *options]) == 1
        told = capfd.readouterr().err
        assert "Traceback" not in told
        (line,) = [line for line in told.splitlines() if line.startswith("error: ")]
        return line

    return call


def test_coco_that_is_not_there(error: Callable[..., str], tmp_path: Path) -> None:
    config = tmp_path / "coco.py"
    data = "mmdet::_base_/datasets/coco_detection.py"
    text = DETECTOR.read_text().replace("'../../_base_/datasets/shapes_detection.py'", repr(data))
    text = text.replace("'../../", f"'{CONFIGS}/")
    config.write_text(text)
    told = error(config, "model.bbox_head.num_classes=80", "train_dataloader.persistent_workers=False")
    assert "data/coco/annotations/instances_train2017.json and data/coco/train2017 are missing" in told
    assert "cocodataset.org" in told


def test_a_class_map_with_an_unknown_value(error: Callable[..., str], tmp_path: Path) -> None:
    sizes = dict(train=10, val=10, image_size=32)
    folder = ensure_shapes(tmp_path, **sizes, layout=ADE20K) / "annotations/training"
    for file in folder.iterdir():
        Image.new("L", (32, 32), 77).save(file)
    options = [
        f"{split}_dataloader.dataset.{key}={value}"
        for split in ("train", "val")
        for key, value in {**sizes, "root": tmp_path}.items()
    ]
    told = error(SEGMENTOR, *options, "train_dataloader.num_workers=1", "val_dataloader.num_workers=0")
    assert ".png has 1024 pixels of the unknown class 77: the 11 classes are 0 to 10" in told


def small(root: Path, *more: str) -> list[str]:
    """Options of a training on ten small scenes."""
    sizes = {"train": 10, "val": 10, "image_size": 32, "root": root}
    datasets = [
        f"{split}_dataloader.dataset.{key}={value}" for split in ("train", "val") for key, value in sizes.items()
    ]
    return [*datasets, "train_dataloader.num_workers=0", "val_dataloader.num_workers=0", *more]


@pytest.mark.parametrize(
    ("config", "option", "told"),
    [
        (DETECTOR, "val_evaluator.ann_file=nowhere.json", "nowhere.json is missing: set val_evaluator.ann_file"),
        (DETECTOR, "val_evaluator.metric=segm", "score of masks (metric 'segm'), and the model predicts boxes only"),
        (DETECTOR, "val_evaluator.metric_items=['mAP_x']", "CocoMetric cannot score the first image (KeyError: "),
        (
            DETECTOR,
            "default_hooks.checkpoint.save_best=bbox_mAP",
            "save_best is 'bbox_mAP', and the evaluation gives c",
        ),
        (SEGMENTOR, "val_evaluator.iou_metrics=['mIOU']", "val_evaluator: IoUMetric cannot score the first image"),
        (SEGMENTOR, "default_hooks.checkpoint.save_best=mIOU", "is 'mIOU', and the evaluation gives aAcc, mIoU, mAcc"),
    ],
)
def test_what_a_metric_will_ask_is_checked_before_the_first_step(
    error: Callable[..., str], tmp_path: Path, config: Path, option: str, told: str
) -> None:
    assert told in error(config, *small(tmp_path, option))
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize(
    ("config", "option", "told"),
    [
        (DETECTOR, "neck.in_channels=5", "model cannot be built, FPN refuses its arguments: AssertionError: assert"),
        (DETECTOR, "bbox_head.in_channels=7", "model.bbox_head.cls_convs.0.conv (Conv2d) cannot use what it is given"),
        (DETECTOR, "bbox_head.loss_cls.gamma=x", "model.bbox_head.loss_cls (FocalLoss) cannot use what it is given"),
        (DETECTOR, "train_cfg.assigner.pos_iou_thr=7", "assigner.pos_iou_thr is 7; expected a number from -1 to 1"),
        (DETECTOR, "backbone.out_indices=3", "backbone: out_indices is 3; expected rising numbers from 0 to 3"),
        (DETECTOR, "backbone.frozen_stages=x", "backbone: frozen_stages is 'x'; expected -1 for none"),
        (SEGMENTOR, "decode_head.dropout_ratio=7", "decode_head.dropout_ratio is 7; expected a number from 0 to 1"),
        (SEGMENTOR, "test_cfg.mode=slide", "model (EncoderDecoder) cannot use what it is given: AttributeError"),
    ],
)  # fmt: skip
def test_values_that_parts_of_a_model_cannot_use(
    error: Callable[..., str], tmp_path: Path, config: Path, option: str, told: str
) -> None:
    """Before a checkpoint is written, and before the first validation would fail; the log file has the traceback."""
    line = error(config, *small(tmp_path, f"model.{option}"))
    assert told in line
    assert not list(tmp_path.rglob("*.pth"))
    if "the log file has the traceback" in line:
        assert any("Traceback (most recent call last)" in log.read_text() for log in tmp_path.rglob("*.log"))


def test_a_transform_that_cannot_run_is_named_before_the_first_step(error: Callable[..., str], tmp_path: Path) -> None:
    """A data worker ended in a traceback."""
    steps = "[{'type': 'LoadImageFromFile'}, {'type': 'YOLOXHSVRandomAug', 'hue_delta': 'x'}]"
    options = f"train_dataloader.dataset.pipeline={steps}", "train_dataloader.num_workers=1"
    line = error(DETECTOR, *small(tmp_path, *options))
    assert "the transform YOLOXHSVRandomAug of a pipeline cannot use what it is given" in line


def test_binary_masks_of_0_and_255(error: Callable[..., str], tmp_path: Path) -> None:
    """They trained, and scored 0.0 and nan with exit code 0."""
    for folder in ("images", "maps"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 20, 20))
    for number in range(8):
        Image.effect_noise((32, 32), 50).convert("RGB").save(tmp_path / f"set/images/{number}.jpg")
        mask.save(tmp_path / f"set/maps/{number}.png")
    config = tmp_path / "binary.py"
    config.write_text(
        f"""
_base_ = {str(SEGMENTOR)!r}
_load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
_set = dict(_delete_=True, type='BaseSegDataset', data_root={str(tmp_path / "set")!r}, pipeline=_load,
            data_prefix=dict(img_path='images', seg_map_path='maps'), metainfo=dict(classes=('ground', 'road')))
model = dict(
    data_preprocessor=dict(size=(32, 32)),
    backbone=dict(dims=(8, 16, 32, 64), depths=(1, 1, 1, 1)),
    decode_head=dict(num_classes=2, in_channels=[8, 16, 32, 64], channels=8),
    auxiliary_head=dict(num_classes=2, in_channels=32, channels=8))
train_dataloader = dict(batch_size=4, num_workers=0, dataset=_set)
val_dataloader = dict(batch_size=4, num_workers=0, dataset=_set)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2))
"""
    )
    told = error(config)
    assert "have the values 0, 255, and the only class is ground" in told and "pixel_values=(0, 255)" in told
    given = [f"{split}_dataloader.dataset.metainfo.pixel_values=(0,255)" for split in ("train", "val", "test")]
    assert "loss_decode.class_weight has 11 numbers, but the data 2 classes" in error(config, *given)
    plain = "loss_decode=dict(_delete_=True, type='CrossEntropyLoss'), num_classes=2"
    config.write_text(config.read_text().replace("num_classes=2", plain))
    name = f"experiment_name=good_{tmp_path.name}"
    assert cli.train([str(config), "--work-dir", str(tmp_path / "work"), "--cfg-options", name, *given]) == 0
    (scalars,) = (tmp_path / "work").glob("*/vis_data/scalars.json")
    score = json.loads(scalars.read_text().splitlines()[-1])
    assert score["mIoU"] > 0 and score["mIoU"] == score["mIoU"]
