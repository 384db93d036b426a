"""Detection and segmentation with the tools: train, resume, evaluate and predict a few embedded scenes."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from forked import train_in_two
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools.mask import decode
from small_training import ROOT, logged

from vssm import cli
from vssm.cli.arguments import test_parser as parser_of_test
from vssm.cli.prediction import load_predictor, predict_files
from vssm.cli.training import run_test
from vssm.data import KINDS
from vssm.models import CheckpointError

_count = itertools.count()

CONFIG = """
_base_ = [{model!r}, {base!r} + '/datasets/shapes_{task}.py', {base!r} + '/{task}_runtime.py']
_set = dict(root={data!r}, train=16, val=10, image_size=64)
train_dataloader = dict(
    batch_size=8, num_workers=0, drop_last=True, dataset=_set,
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))
val_dataloader = dict(batch_size=5, num_workers=0, dataset=_set)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, {evaluator})
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=2)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    constructor='GroupMatcherOptimWrapperConstructor', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='PlainCheckpointHook', interval=1, max_keep_ckpts=3, save_best={best!r}, rule='greater'),
    epoch=dict(type='EpochHook'),
    throughput=dict(type='ThroughputHook'),
    finite_loss=dict(type='FiniteLossHook'),
    progress=None)
log_processor = dict(by_epoch=True)
visualizer = dict(vis_backends=[dict(type='LocalVisBackend')])
log_level = 'ERROR'
_backbone = dict(
    _delete_=True, type='VSSMBackbone', name='vmamba_tiny', dims=(8, 16, 32, 64), depths=(1, 1, 1, 1),
    drop_path_rate=0.1)
"""
DETECTOR = """
model = dict(
    backbone=_backbone,
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=10),
        mask_head=dict(in_channels=16, conv_out_channels=16, num_convs=1, num_classes=10)),
    test_cfg=dict(rcnn=dict(max_per_img=10)))
"""
SEGMENTOR = """
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=_backbone,
    decode_head=dict(in_channels=[8, 16, 32, 64], channels=16, num_classes=11),
    auxiliary_head=dict(in_channels=32, channels=16, num_classes=11))
"""
TASKS = {
    "detection": (
        DETECTOR,
        "mmdet",
        "mask-rcnn_r50_fpn",
        "type='CocoMetric', metric=['bbox', 'segm']",
        "coco/bbox_mAP",
    ),
    "segmentation": (SEGMENTOR, "mmseg", "upernet_swin", "type='IoUMetric', iou_metrics=['mIoU']", "mIoU"),
}


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def config_of(folder: Path) -> Callable[[str], Path]:
    """The configuration file of a task, each time with another name of the experiment: mmengine's logs are global."""

    def write(task: str) -> Path:
        changes, scope, model, evaluator, best = TASKS[task]
        path = folder / f"{task}_{next(_count)}.py"
        text = CONFIG.format(
            model=f"{scope}::_base_/models/{model}.py",
            base=str(ROOT / "configs/_base_"),
            task=task,
            scope=scope,
            data=str(folder / "data"),
            evaluator=evaluator,
            best=best,
        )
        path.write_text(f"{text}{changes}experiment_name = {path.stem!r}\n")
        return path

    return write


@pytest.fixture(scope="module")
def work(task: str, folder: Path, config_of: Callable[[str], Path]) -> Path:
    """The work directory of a training of two epochs with validation."""
    assert cli.train([str(config_of(task)), "--work-dir", str(folder / task)]) == 0
    return folder / task


def validated(work: Path) -> dict[str, float]:
    """The last validation's metrics."""
    return [values for values in logged(work) if "loss" not in values][-1]


def evaluate(config: Path, checkpoint: Path, folder: Path, *options: str) -> dict[str, float]:
    arguments = [str(config), str(checkpoint), "--work-dir", str(folder), *options]
    return run_test(parser_of_test().parse_args(arguments))


def test_evaluation_gives_what_validation_gave(task, work, config_of, tmp_path):
    metrics = evaluate(config_of(task), work / "epoch_2.pth", tmp_path)
    assert {"detection": "coco/segm_mAP_50", "segmentation": "mIoU"}[task] in metrics
    before = validated(work)
    for name, value in metrics.items():
        assert value == pytest.approx(before[name], nan_ok=True), name


OTHER_ORDER = """
_load = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale_factor=1.0),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
test_dataloader = dict(dataset=dict(
    _delete_=True, type='CocoDataset', data_root={root!r}, ann_file={file!r}, data_prefix=dict(img='val/'),
    metainfo=dict(classes={classes!r}), test_mode=True, pipeline=_load))
test_evaluator = dict(_delete_=True, type='CocoMetric', ann_file={file!r}, metric='bbox')
"""


@pytest.mark.parametrize("task", ["detection"], indirect=True)
def test_evaluation_goes_by_the_names_of_classes(task, work, config_of, folder, tmp_path, monkeypatch):
    """Categories in another order in the file, classes in another order in the config, and a root category."""
    from mmdet.models.detectors import TwoStageDetector

    (root,) = (folder / "data").glob("shapes_coco*")
    content = json.loads((root / "annotations/instances_val.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    content["categories"].insert(0, {"id": 0, "name": "star"})  # without objects
    content["categories"].reverse()
    file = tmp_path / "turned.json"
    file.write_text(json.dumps(content))
    config = config_of(task)
    classes = [category["name"] for category in content["categories"]][:-1]
    config.write_text(config.read_text() + OTHER_ORDER.format(root=str(root), file=str(file), classes=classes))

    def all_right(self, inputs, samples, rescale=True):
        """What a perfect detector finds that was trained with the classes in their own order."""
        for sample in samples:
            shapes = [shape for shape in content["annotations"] if shape["image_id"] == sample.img_id]
            left, top, width, height = torch.tensor([shape["bbox"] for shape in shapes], dtype=torch.float32).T
            labels = torch.tensor([KINDS.index(names[shape["category_id"]]) for shape in shapes])
            boxes = torch.stack([left, top, left + width, top + height], dim=1)
            sample.pred_instances = InstanceData(bboxes=boxes, labels=labels, scores=torch.ones(len(shapes)))
        return samples

    monkeypatch.setattr(TwoStageDetector, "predict", all_right)
    assert evaluate(config, work / "epoch_2.pth", tmp_path)["coco/bbox_mAP"] == pytest.approx(1.0)


def test_time_augmentation(task, work, config_of, tmp_path):
    metrics = evaluate(config_of(task), work / "epoch_2.pth", tmp_path, "--tta")
    assert {"detection": "coco/bbox_mAP_50", "segmentation": "mIoU"}[task] in metrics
    assert "coco/segm_mAP" not in metrics  # mmdet merges boxes only


def test_a_resumed_training_ends_as_one_that_was_not_interrupted(task, work, config_of, tmp_path):
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    (resumed / "epoch_1.pth").write_bytes((work / "epoch_1.pth").read_bytes())
    assert cli.train([str(config_of(task)), "--work-dir", str(resumed), "--resume", "--no-validate"]) == 0
    ends = [torch.load(path / "epoch_2.pth", weights_only=True)["state_dict"] for path in (work, resumed)]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=1e-6, msg=name)


def test_mixed_precision(task, config_of, tmp_path):
    options = ("--amp", "bf16", "--no-validate", "--cfg-options", "train_cfg.max_epochs=1")
    assert cli.train([str(config_of(task)), "--work-dir", str(tmp_path), *options]) == 0
    for name, value in torch.load(tmp_path / "epoch_1.pth", weights_only=True)["state_dict"].items():
        assert torch.isfinite(value).all(), name


def test_predict(task, work, folder, tmp_path):
    pattern = {"detection": "shapes_coco*/val/*.*", "segmentation": "shapes_ade*/images/validation/*.*"}[task]
    images = sorted((folder / "data").glob(pattern))[:2]
    predictor = load_predictor(None, work / "epoch_2.pth")
    saved = torch.load(work / "epoch_2.pth", weights_only=True)["state_dict"]
    for name, value in predictor.model.state_dict().items():
        assert torch.equal(value.cpu(), saved[name]), name

    results = list(predict_files(predictor, images, tmp_path / "found.png"))
    assert json.loads((tmp_path / "found.json").read_text()) == results
    for image, result in zip(images, results, strict=True):
        assert result["image"] == str(image)
        assert result["picture"] == str(tmp_path / f"found_{image.stem}.png")
        assert Image.open(result["picture"]).width >= 480
        if task == "detection":
            assert all(set(each) == {"label", "score", "box", "mask"} for each in result["objects"])
            assert all(decode(each["mask"]).shape == (64, 64) for each in result["objects"])
        else:
            numbers = numpy.asarray(Image.open(result["class_map"]))
            assert numbers.shape == (64, 64) and numbers.max() < 11
            assert sum(result["classes"].values()) == pytest.approx(1, abs=0.01)
            # A class map of the user's stays, as every file does.
            mine = tmp_path / "one_classes.png"
            mine.write_bytes(b"mine")
            command = [str(images[0]), "--checkpoint", str(work / "epoch_2.pth"), "--out", str(tmp_path / "one.png")]
            assert cli.predict(command) == 1 and mine.read_bytes() == b"mine"


def test_weights_alone_are_predicted_with_by_a_config(task, work, config_of, tmp_path):
    saved = torch.load(work / "epoch_2.pth", weights_only=True)
    torch.save({"state_dict": saved["state_dict"]}, tmp_path / "weights.pth")
    names = saved["meta"]["dataset_meta"]["classes"]
    (tmp_path / "labels.txt").write_text("\n".join(names))
    predictor = load_predictor(str(config_of(task)), tmp_path / "weights.pth", tmp_path / "labels.txt")
    assert list(predictor.names) == list(names)
    image = tmp_path / "image.png"
    Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=numpy.uint8)).save(image)
    (result,) = predict_files(predictor, [image], tmp_path / "found.png")
    assert result["picture"] == str(tmp_path / "found.png")


def test_a_checkpoint_of_another_head_is_one_sentence(task, work, config_of, tmp_path):
    other = {"detection": "segmentation", "segmentation": "detection"}[task]
    with pytest.raises(CheckpointError, match=r"checkpoint of another model: it holds .*backbone.*nothing was loaded"):
        evaluate(config_of(other), work / "epoch_2.pth", tmp_path)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("train_cfg.max_epoch=2", "did you mean 'max_epochs'"),
        ("optim_wraper.type=OptimWrapper", "did you mean 'optim_wrapper'"),
        ("model.type=MaskRCN", "MaskRCN"),
        ("model.backbone.name=vim_tinny", "did you mean vim_tiny"),
        ("model.bakbone=1", "bakbone"),
        ("train_dataloader.dataset.spilt=train", "did you mean 'split'"),
        ("train_dataloader.batch_size=33", "fewer than one batch of 33"),
        ("train_dataloader.sampler.type=InfiniteSampler", "an epoch would never end"),
    ],
)
def test_bad_configs_are_one_sentence(task, config_of, tmp_path, capfd, option, told):
    assert cli.train([str(config_of(task)), "--work-dir", str(tmp_path), "--cfg-options", option]) == 1
    error = capfd.readouterr().err
    assert told in error and "Traceback" not in error


def test_classes_of_another_number_are_one_sentence(task, config_of, tmp_path, capfd):
    option = {
        "detection": "model.roi_head.bbox_head.num_classes=80",
        "segmentation": "model.decode_head.num_classes=150",
    }
    assert cli.train([str(config_of(task)), "--work-dir", str(tmp_path), "--cfg-options", option[task]]) == 1
    assert "classes, but the model" in capfd.readouterr().err


def test_two_processes(config_of, tmp_path):
    """A detector, one batch each; validation joins what both have found."""
    options = ("--work-dir", tmp_path / "two", "--cfg-options", "train_cfg.max_epochs=1")
    codes, told = train_in_two(tmp_path, config_of("detection"), *options)
    assert codes == [0, 0], told
    assert (tmp_path / "two/epoch_1.pth").is_file()
    assert "coco/bbox_mAP" in validated(tmp_path / "two")
