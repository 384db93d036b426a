"""Test-time augmentation of detection and segmentation: predicts each image also mirrored, and merges the results."""

from copy import deepcopy

from mmengine.config import Config

from vssm.errors import ConfigError

# A config may override these by tta_model and tta_pipeline, as in mmdet and mmseg.
MODELS = {
    "mmdet": {"type": "BoxTTAModel", "tta_cfg": {"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100}},
    "mmseg": {"type": "SegTTAModel"},
}
FLIP_KEYS = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction")


def use_tta(config: Config) -> None:
    """Add test-time augmentation to a config.

    mmdet merges boxes only, so masks are not evaluated.

    Args:
        config: changed in place: its model, test pipeline and test metrics.

    Raises:
        ConfigError: the config is of another task.
    """
    scope = config.get("default_scope")
    if scope not in MODELS:
        raise ConfigError("--tta is for detection and segmentation, and this config is of neither")
    if scope == "mmdet":
        from vssm.mm.compat import box_tta  # noqa: F401  (registers BoxTTAModel)

        _evaluate_boxes_only(config)
    wrapper = {**MODELS[scope], **config.get("tta_model", {}), "type": MODELS[scope]["type"]}
    data = config.test_dataloader.dataset
    data.pipeline = config.get("tta_pipeline") or mirrored(data.pipeline)
    config.model = {**wrapper, "module": config.model}


def mirrored(pipeline: list[dict]) -> list[dict]:
    """A test pipeline that gives an image unchanged and mirrored; its last step packs the results."""
    *steps, pack = deepcopy(pipeline)
    pack["meta_keys"] = tuple(dict.fromkeys((*pack.get("meta_keys", ()), *FLIP_KEYS)))
    flips = [{"type": "RandomFlip", "prob": prob, "direction": "horizontal"} for prob in (0.0, 1.0)]
    return [*steps, {"type": "TestTimeAug", "transforms": [flips, [pack]]}]


def _evaluate_boxes_only(config: Config) -> None:
    evaluators = config.test_evaluator if isinstance(config.test_evaluator, list) else [config.test_evaluator]
    for evaluator in evaluators:
        if "segm" in evaluator.get("metric", ()):
            evaluator["metric"] = "bbox"
