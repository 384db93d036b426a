"""Evaluation metrics of classification, and the scores that a training goes by."""

from collections.abc import Iterator

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from mmengine.runner import Runner

from vssm.errors import ConfigError
from vssm.values import list_of, whole

_COUNTS = list_of(whole(1, 2**31))


@METRICS.register_module()
class TopAccuracy(BaseMetric):
    """Percentage of images whose label is among the k best-scored classes.

    Args:
        topk: the values of k; those not below the number of classes are left out.
        prefix: goes before the names: ``accuracy/top1``.

    Raises:
        ConfigError: `topk` is no list of whole numbers from 1 on; in `compute_metrics`, all of them are left out.

    Example:
        >>> import torch
        >>> metric = TopAccuracy(topk=(1, 2))
        >>> scores = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
        >>> metric.process({}, [dict(scores=s, label=torch.tensor(2)) for s in scores])
        >>> metric.evaluate(size=2)
        {'accuracy/top1': 0.0, 'accuracy/top2': 50.0}
    """

    default_prefix = "accuracy"

    def __init__(self, topk: tuple[int, ...] = (1, 5), prefix: str | None = None) -> None:
        super().__init__(prefix=prefix)
        if not _COUNTS.holds(topk):
            raise ConfigError(f"TopAccuracy.topk is {topk!r}; expected {_COUNTS.expected}, such as (1, 5)")
        self.topk = tuple(topk)

    def process(self, data_batch: dict, data_samples: list[dict]) -> None:
        """Store for each image the rank of its label among the scores, and the number of classes."""
        for sample in data_samples:
            scores, label = sample["scores"], sample["label"]
            # Equal scores and NaN count against the label.
            place = int((~(scores < scores[label])).sum()) - 1
            self.results.append((place, len(scores)))

    def compute_metrics(self, results: list[tuple[int, int]]) -> dict[str, float]:
        """Percentages over all images of all processes."""
        classes = results[0][1]
        if min(self.topk) >= classes:
            raise ConfigError(
                f"TopAccuracy.topk is {self.topk}, and of {classes} classes each is among the best {min(self.topk)}: "
                "expected a k below their number, such as topk=(1,)"
            )
        return {
            f"top{k}": 100 * sum(place < k for place, _ in results) / len(results) for k in self.topk if k < classes
        }


def check_asked_scores(runner: Runner, scores: dict[str, float], after: str = "") -> None:
    """Refuse a training that goes by a score which its evaluation does not give.

    Args:
        runner: of the training.
        scores: of an evaluation, by name; none where it had nothing to score.
        after: end of the sentence.

    Raises:
        ConfigError: names the option and the scores that there are.
    """
    for option, name in asked_scores(runner):
        if scores and name != "auto" and name not in scores:
            raise ConfigError(f"{option} is {name!r}, and the evaluation gives {', '.join(scores)}{after}")


def asked_scores(runner: Runner) -> Iterator[tuple[str, str]]:
    """The names of scores in a training's options, each after the option."""
    for hook in runner.hooks:
        for name in getattr(hook, "key_indicators", ()):
            yield "default_hooks.checkpoint.save_best", name
        if hasattr(hook, "monitor"):
            yield f"monitor of {type(hook).__name__}", hook.monitor
    schedulers = runner.param_schedulers if isinstance(runner.param_schedulers, list) else ()
    for scheduler in schedulers:
        if hasattr(scheduler, "monitor"):
            yield f"monitor of {type(scheduler).__name__} in param_scheduler", scheduler.monitor
