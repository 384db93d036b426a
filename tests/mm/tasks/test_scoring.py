"""One image is scored before the first step; see vssm.mm.tasks.scoring."""

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.registry import DATASETS, METRICS, DefaultScope
from PIL import Image
from torch.utils.data import DataLoader

from vssm.data import DataError
from vssm.errors import ConfigError
from vssm.mm.runtime.metrics import TopAccuracy, check_asked_scores
from vssm.mm.tasks.data_check import Use, prepare_dataset
from vssm.mm.tasks.datasets import RepeatedAugmentationSampler
from vssm.mm.tasks.runner import check_every_image, score_by_name
from vssm.mm.tasks.scoring import check_told_apart, tell_ids, try_scores

RUNNER = SimpleNamespace(hooks=[], param_schedulers=None, logger=logging.getLogger("trial"))


def test_a_first_image_without_objects_and_predictions_is_scored_and_leaves_nothing_behind(tmp_path: Path) -> None:
    metrics = pytest.importorskip("mmdet.evaluation.metrics")
    metric = metrics.CocoMetric(metric=["bbox", "segm"], outfile_prefix=str(tmp_path / "results"))
    metric.dataset_meta = {"classes": ("ant", "bee")}
    none = {"bboxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}
    sample = {"img_id": "a", "ori_shape": (8, 9), "instances": [], "pred_instances": {**none}}
    sample["pred_instances"]["masks"] = torch.zeros(0, 8, 9, dtype=torch.bool)
    before = dict(vars(metric))
    runner = SimpleNamespace(**{**vars(RUNNER), "hooks": [SimpleNamespace(key_indicators=["coco/segm_mAP"])]})
    try_scores(runner, SimpleNamespace(metrics=[metric]), {}, [sample], "val_evaluator")
    assert vars(metric) == before and not metric.results and not list(tmp_path.iterdir())
    runner.hooks[0].key_indicators = ["segm_mAP"]
    with pytest.raises(ConfigError, match="save_best is 'segm_mAP', and the evaluation gives coco/bbox_mAP, "):
        try_scores(runner, SimpleNamespace(metrics=[metric]), {}, [sample], "val_evaluator")


def test_places_of_classes_in_the_place_of_ids_are_told(caplog) -> None:
    metrics = pytest.importorskip("mmdet.evaluation.metrics")
    tell_ids(metrics.CocoMetric(), "val_evaluator")
    tell_ids(TopAccuracy(), "val_evaluator")
    assert not caplog.messages
    tell_ids(metrics.CocoMetric(outfile_prefix="found"), "val_evaluator")
    assert "category_id in these files is the place of the class" in caplog.text


def test_metrics_of_others_are_not_tried() -> None:
    """They may need many images."""
    broken = SimpleNamespace(process=None, compute_metrics=None)
    runner = SimpleNamespace(**{**vars(RUNNER), "hooks": [SimpleNamespace(key_indicators=["auc"])]})
    try_scores(runner, SimpleNamespace(metrics=[broken]), {}, [], "val_evaluator")


@pytest.mark.parametrize("part", ["hooks", "param_schedulers"])
def test_whatever_goes_by_a_score_needs_one_that_is_given(part: str) -> None:
    runner = SimpleNamespace(**{**vars(RUNNER), part: [SimpleNamespace(monitor="top2")]})
    check_asked_scores(runner, {"top2": 1.0})
    check_asked_scores(runner, {})
    with pytest.raises(ConfigError, match=r"monitor of SimpleNamespace.* is 'top2', and the evaluation gives top1"):
        check_asked_scores(runner, {"top1": 1.0})


@pytest.mark.parametrize("reads_file", [True, False])
@pytest.mark.parametrize("line", [[[1, 2, 3, 4]], [[]], [[1, 2, 3, 4], [8, 8, 16, 8, 16, 16]]])
def test_masks_with_lines_are_scored_as_they_are_learnt(tmp_path: Path, line: list, reads_file: bool) -> None:
    """pycocotools took them for boxes and failed, after the first epoch."""
    pytest.importorskip("mmdet")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.jpg")
    same = {"image_id": 1, "category_id": 5, "area": 64}
    objects = [
        {**same, "id": 1, "bbox": [0, 0, 8, 8], "iscrowd": 0, "segmentation": [[0, 0, 8, 0, 8, 8, 0, 8]]},
        {**same, "id": 2, "bbox": [8, 8, 8, 8], "iscrowd": 0, "segmentation": line},
    ]
    images = [{"id": 1, "file_name": "a.jpg", "width": 32, "height": 32}]
    content = {"images": images, "annotations": objects, "categories": [{"id": 5, "name": "ant"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True}]
    config = {"type": "CocoDataset", "ann_file": "a.json", "data_prefix": {"img": ""}, "pipeline": pipeline}
    config |= {"data_root": str(tmp_path), "metainfo": {"classes": ("ant",)}, "serialize_data": False}
    with DefaultScope.overwrite_default_scope("mmdet"):
        dataset = DATASETS.build(prepare_dataset(config, Use(is_training=False, scored=True, masks=True)))
        file = {"ann_file": str(tmp_path / "a.json")} if reads_file else {}
        metric = METRICS.build({"type": "CocoMetric", "metric": ["bbox", "segm"], **file})
    metric.dataset_meta = dataset.metainfo
    if reads_file:
        score_by_name(metric, dataset, "val_evaluator.ann_file")
    truth = dataset[0]
    learnt = ~torch.as_tensor(truth["gt_ignore_flags"])
    found = {
        "bboxes": truth["gt_bboxes"].tensor[learnt],
        "scores": torch.ones(int(learnt.sum())),
        "labels": torch.zeros(int(learnt.sum()), dtype=torch.long),
        "masks": torch.as_tensor(truth["gt_masks"].to_ndarray())[learnt].bool(),
    }
    sample = {"img_id": 1, "ori_shape": (32, 32), "instances": truth["instances"], "pred_instances": found}
    metric.process({}, [sample])
    scores = metric.evaluate(1)
    assert (scores["coco/bbox_mAP"], scores["coco/segm_mAP"]) == (1.0, 1.0)
    assert int(learnt.sum()) == (2 if len(line) == 2 else 1)


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ({"_coco_api": None}, "a/0.jpg and b/0.jpg have the id 1, by which scores go: number them differently"),
        ({"output_dir": "maps"}, "a/0.jpg and b/0.jpg have the name 0 in maps: name them differently"),
        ({"output_dir": None}, None),
    ],
)
def test_images_are_told_apart(metric: dict, told: str | None) -> None:
    """Joined files that each begin with 1 were scored as one image; of two class maps the later one was left."""
    infos = [{"img_path": "a/0.jpg", "img_id": 1}, {"img_path": "b/0.jpg", "img_id": 1}]

    class Joined(list):
        get_data_info = list.__getitem__

    check_told_apart(SimpleNamespace(**metric), Joined(infos[:1] * 2))  # repeated
    check_told_apart(SimpleNamespace(**metric), Joined([{"img_path": "a/0.jpg"}, {"img_path": "b/1.jpg"}]))
    if told is None:
        check_told_apart(SimpleNamespace(**metric), Joined(infos))
        return
    with pytest.raises(DataError, match=told):
        check_told_apart(SimpleNamespace(**metric), Joined(infos))


def test_two_metrics_of_one_name_are_refused() -> None:
    """mmengine says so after the first validation, or a whole test."""
    metrics, sample = [TopAccuracy(topk=(1,)), TopAccuracy()], {"scores": torch.rand(9), "label": torch.tensor(0)}
    with pytest.raises(ConfigError, match="val_evaluator: two metrics give a score accuracy/top1; expected each name"):
        try_scores(RUNNER, SimpleNamespace(metrics=metrics), {}, [sample], "val_evaluator")
    metrics[1].prefix = "other"
    try_scores(RUNNER, SimpleNamespace(metrics=metrics), {}, [sample], "val_evaluator")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batch_size": 4, "drop_last": True}, "test_dataloader.drop_last=True leaves 1 of 5 images unscored"),
        ({"batch_size": 5, "drop_last": True}, None),
        ({"sampler": InfiniteSampler(range(5))}, "test_dataloader.sampler is an InfiniteSampler"),
        ({"sampler": RepeatedAugmentationSampler(range(5))}, "a RepeatedAugmentationSampler, repeats some images"),
    ],
    ids=["left out", "none left out", "endless", "repeated"],
)
def test_every_image_is_scored_once(options: dict, told: str | None) -> None:
    loader = DataLoader(range(5), **options)
    with pytest.raises(DataError, match=told) if told else nullcontext():
        check_every_image(loader, "test_dataloader")
