"""One image is scored before the first step; see vssm.mm.tasks.scoring."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vssm.errors import ConfigError
from vssm.mm.runtime.metrics import check_asked_scores
from vssm.mm.tasks.scoring import try_scores

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
