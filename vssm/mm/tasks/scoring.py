"""What scores ask for is tried before the first step: one image goes through the metrics as all will later."""

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from vssm.data import DataError
from vssm.errors import ConfigError
from vssm.mm.runtime.metrics import check_asked_scores

_logger = logging.getLogger(__name__)

# Metrics that can score any number of images; of others nothing is known.
_TRIED = ("vssm.", "mmdet.evaluation.metrics.coco_metric", "mmseg.evaluation.metrics.iou_metric")


def try_scores(runner: Runner, evaluator: Evaluator, batch: dict, samples: Sequence[object], option: str) -> None:
    """Score one image, and look whether the evaluation gives the scores that the training goes by.

    Args:
        runner: of the training or the test.
        evaluator: of the loop; its metrics stay as they are, and no file is written.
        batch: of one image.
        samples: what the model predicts of it.
        option: of the config, which names the metrics.

    Raises:
        ConfigError: a metric that cannot score the image, two that give a score of one name, or a score that the
            evaluation does not give.
    """
    plain = [sample.to_dict() if isinstance(sample, BaseDataElement) else sample for sample in samples]
    plain, scores, known = [_with_an_object(sample) for sample in plain], {}, True
    for metric in evaluator.metrics:
        if not type(metric).__module__.startswith(_TRIED) or getattr(metric, "format_only", False):
            known = False
            continue
        trial = copy.copy(metric)
        changed = {"output_dir": None, "outfile_prefix": None, "use_mp_eval": False}
        changed["img_ids"] = [sample["img_id"] for sample in plain if "img_id" in sample]
        trial.results = []
        vars(trial).update({name: value for name, value in changed.items() if hasattr(metric, name)})
        try:
            with _silent(runner):
                trial.process(batch, plain)
                found = trial.compute_metrics(trial.results)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
            raise ConfigError(
                f"{option}: {type(metric).__name__} cannot score the first image ({type(e).__name__}: {e}); correct "
                "its arguments, or the pipeline: predictions have the size of the image itself, so annotations are "
                "loaded after Resize"
            ) from e
        found = {f"{metric.prefix}/{name}" if metric.prefix else name: value for name, value in found.items()}
        if twice := scores.keys() & found.keys():
            raise ConfigError(
                f"{option}: two metrics give a score {min(twice)}; expected each name once: ask one metric for all, or "
                "give them different prefixes (prefix='...')"
            )
        scores |= found
    if known:
        check_asked_scores(runner, scores)


def _with_an_object(sample: dict) -> dict:
    """A prediction of objects, with one where there is none: mmdet gives no scores where nothing was found."""
    found = sample.get("pred_instances")
    if found is None or len(found["scores"]):
        return sample
    one = {"bboxes": torch.tensor([[0.0, 0, 1, 1]]), "scores": torch.tensor([0.5]), "labels": torch.tensor([0])}
    if "masks" in found:
        one["masks"] = torch.zeros(1, *sample["ori_shape"][:2], dtype=torch.bool)
    return {**sample, "pred_instances": one}


def check_told_apart(metric: object, dataset: object) -> None:
    """Refuse images that a metric would take for one: of one id, or of one name for the files that it writes.

    Args:
        metric: CocoMetric goes by the ids of images, and IoUMetric writes class maps under their names.
        dataset: that is evaluated; joined annotation files may each count their images from 1.

    Raises:
        DataError: names two of them.
    """
    by_id, folder = hasattr(metric, "_coco_api"), getattr(metric, "output_dir", None)
    if not hasattr(dataset, "get_data_info") or not (by_id or folder):
        return
    first: dict[object, str] = {}
    for info in map(dataset.get_data_info, range(len(dataset))):
        path = info.get("img_path", "")
        key = info.get("img_id") if by_id else Path(path).stem
        if key is not None and first.setdefault(key, path) != path:
            what = (
                f"the id {key!r}, by which scores go: number them"
                if by_id
                else f"the name {key} in {folder}: name them"
            )
            raise DataError(f"{first[key]} and {path} have {what} differently")


def tell_ids(metric: object, option: str) -> None:
    """Say what a CocoMetric without an annotation file writes for the ids of categories: it does not know them.

    Args:
        metric: of an evaluation.
        option: of the config, which names the metric.
    """
    if getattr(metric, "_coco_api", metric) is None and getattr(metric, "outfile_prefix", None):
        _logger.warning(
            f"{option}.outfile_prefix: the category_id in these files is the place of the class, from 0 on; for the "
            f"ids of an annotation file set {option}.ann_file"
        )


@contextmanager
def _silent(runner: Runner) -> Iterator[None]:
    """No table of one image in the log or on the terminal."""
    disabled, runner.logger.disabled = runner.logger.disabled, True
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        runner.logger.disabled = disabled
