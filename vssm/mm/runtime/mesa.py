"""MESA: a classifier learns from its own averaged weights, too."""

import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn import functional

from vssm.errors import ConfigError
from vssm.mm.runtime.distributed import unwrap


class MESALoss:
    """The cross entropy of logits with the probabilities that averaged weights give to the same images.

    It is no part of the module that holds it: not trained or saved.

    Args:
        averaged: the model with the averaged weights: images (batch, channels, height, width) to logits
            (batch, classes); used in evaluation mode.
        factor: of the loss.

    >>> loss = MESALoss(nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), factor=1.5)
    >>> loss(torch.randn(2, 3, 2, 2), torch.randn(2, 10)).shape
    torch.Size([])
    """

    def __init__(self, averaged: nn.Module, factor: float) -> None:
        self.averaged, self.factor = averaged.eval(), factor

    def __call__(self, images: Tensor, logits: Tensor) -> Tensor:
        """The mean over the images, from the logits of the model that is trained."""
        with torch.no_grad():
            probabilities = self.averaged(images).float().softmax(-1)
        return self.factor * functional.cross_entropy(logits.float(), probabilities)

    def __deepcopy__(self, memo: dict) -> "MESALoss":
        return self


@HOOKS.register_module()
class MESAHook(Hook):
    """Draws a classifier towards its averaged weights, with a second loss (MESA, arXiv 2205.14083).

    The averages are those of the training's EMAHook, as they are at each step. Spatial-Mamba is trained so, and VSSD in
    a second set of weights: ``default_hooks = dict(mesa=dict(type='MESAHook', factor=1.0))``.

    Args:
        factor: of the second loss, beside a first of 1.
        begin: how many epochs pass without it.

    Raises:
        ConfigError: when a training begins that averages no weights, or has no classifier, or a teacher beside it.
    """

    def __init__(self, factor: float, begin: int = 75) -> None:
        self.factor, self.begin = factor, begin

    def before_train(self, runner: Runner) -> None:
        """Find the averages."""
        self.averages = next((hook for hook in runner.hooks if isinstance(hook, EMAHook)), None)
        if self.averages is None:
            raise ConfigError(
                "default_hooks.mesa draws the model towards its averaged weights, and this training averages none: "
                "expected default_hooks.ema=dict(type='EMAHook', momentum=1e-4)"
            )
        model = unwrap(runner.model)
        if not hasattr(model, "second_loss") or model.teacher is not None:
            raise ConfigError(
                "default_hooks.mesa is for an ImageClassifier without a teacher: leave it out with "
                "default_hooks.mesa=None"
            )

        if self.begin >= runner.max_epochs:  # a training that counts steps is one epoch
            runner.logger.warning(
                f"default_hooks.mesa.begin is {self.begin}, and the training ends after epoch {runner.max_epochs}: its "
                "loss is never added"
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Add the loss from the first epoch on that has it."""
        if runner.epoch >= self.begin:
            unwrap(runner.model).second_loss = MESALoss(self.averages.ema_model.module.backbone, self.factor)
