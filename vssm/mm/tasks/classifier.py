"""Any timm model as an mmengine classifier, and the preprocessing that runs on the device."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from mmengine.dist import all_reduce
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional

from vssm.data.classes import some
from vssm.errors import ConfigError
from vssm.inference.create import check_known, create_model, with_name
from vssm.inference.saved import classes_of, load_weights, read_checkpoint, to_plain


@MODELS.register_module()
class ClassificationPreprocessor(BaseDataPreprocessor):
    """Moves a batch to the model's device, scales it, and mixes images and labels for training.

    Args:
        mean: mean per channel, in the range 0 to 1; None if the transform has normalised the inputs.
        std: standard deviation per channel, in the range 0 to 1.
        mixup: arguments of ``timm.data.Mixup`` (mixup_alpha, cutmix_alpha, label_smoothing, num_classes ...), for
            training only; None for no mixup.

    Example:
        >>> preprocessor = ClassificationPreprocessor(mean=[0.5], std=[0.25])
        >>> batch = dict(inputs=torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), label=torch.tensor([3]))
        >>> preprocessor(batch)["inputs"].unique()
        tensor([2.])
    """

    def __init__(
        self,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        mixup: dict | None = None,
    ) -> None:
        super().__init__(non_blocking=True)
        if (mean is None) != (std is None):
            raise ConfigError("data_preprocessor: give mean and std together, or neither")
        self.normalises = mean is not None
        if self.normalises:
            self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
            self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.mixup = Mixup(**mixup) if mixup else None

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare one batch.

        Args:
            data: ``inputs`` (batch, channels, height, width), uint8 (0 to 255) or float (0 to 1, or normalised),
                ``label`` (batch,) and ``path``, a list.
            training: whether mixup is applied.

        Returns:
            The same keys; ``label`` is (batch, classes) where mixup was applied.
        """
        data = self.cast_data(data)
        inputs, label = data["inputs"], data["label"]
        if not inputs.is_floating_point():
            inputs = inputs.float() / 255
        if self.normalises:
            inputs = (inputs - self.mean) / self.std
        if training and self.mixup is not None:
            check_pairs(len(inputs))
            inputs, label = self.mixup(inputs, label)
        return {**data, "inputs": inputs, "label": label}


def check_pairs(images: int) -> None:
    """Refuse to mix a batch of so many images.

    Raises:
        ConfigError: their number is odd.
    """
    if images % 2:
        raise ConfigError(
            f"mixup pairs the images of a batch, but a batch has {images}: choose an even train_dataloader.batch_size "
            "and drop_last=True"
        )


class Teacher:
    """A trained model that labels images, for a student with a distillation head (DeiT, arXiv 2012.12877).

    It is no part of the module that holds it: not trained, saved or averaged, and built for training alone.

    Args:
        arguments: of ``timm.create_model``, and ``checkpoint``, a file of weights; without it the published weights are
            downloaded.
        num_classes: of the student.

    Attributes:
        classes: the names of the training's classes, in the order of its labels, by which the teacher's go where its
            file names them; None where they are not known.
        normalised: the mean and the deviation that images are normalised with; None where they are not known.

    Raises:
        ConfigError: unknown model name; in `load` weights that cannot be had, or of other classes than the student's.
        CheckpointError: in `load`, the file cannot be read or does not fit.
    """

    classes: tuple[str, ...] | None = None
    normalised: dict[str, tuple[float, ...]] | None = None
    _labels: Tensor | None = None

    def __init__(self, arguments: dict, num_classes: int) -> None:
        self.arguments = with_name(to_plain(arguments), "model.teacher")
        self.checkpoint = self.arguments.pop("checkpoint", None)
        self.name, self.num_classes = self.arguments["name"], num_classes
        check_known(self.name)
        self.model: nn.Module | None = None

    def load(self, device: torch.device) -> None:
        """Build the model with its weights; nothing is read before."""
        model = self._published() if self.checkpoint is None else self._from_file(device)
        self.model = model.eval().requires_grad_(False).to(device)

    def _from_file(self, device: torch.device) -> nn.Module:
        model = create_model(**{"num_classes": self.num_classes, **self.arguments})
        load_weights(model, self.checkpoint)
        own = classes_of(read_checkpoint(self.checkpoint))
        if own and self.classes and own != self.classes:
            if len(own) != len(self.classes) or {*own} != {*self.classes}:
                raise ConfigError(
                    f"model.teacher.checkpoint, {self.checkpoint}, knows the classes {some(own)} ({len(own)} in all), "
                    f"and the data have {some(self.classes)} ({len(self.classes)}): give a teacher of the same classes"
                )
            self._labels = torch.tensor([self.classes.index(name) for name in own], device=device)
        return model

    def _published(self) -> nn.Module:
        try:
            model = create_model(**self.arguments, pretrained=True)
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"the weights of the teacher {self.name} could not be downloaded ({error}): check the network, or give "
                "a file with --cfg-options model.teacher.checkpoint=FILE"
            ) from error
        known = model.pretrained_cfg["num_classes"]  # of the weights; for others timm would leave the head untrained
        if known != self.num_classes:
            raise ConfigError(
                f"the teacher {self.name} knows {known} classes and the model has {self.num_classes}: give the file of "
                "a teacher of the same classes with --cfg-options model.teacher.checkpoint=FILE"
            )
        own = {key: tuple(model.pretrained_cfg[key]) for key in self.normalised or ()}
        if self.normalised and own != self.normalised:
            raise ConfigError(
                f"the teacher {self.name} knows images normalised with {own}, and the student's are with "
                f"{self.normalised}: set mean and std of dataset.transform everywhere, or choose another teacher"
            )
        return model

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width), normalised as for the student -> class indices (batch,)."""
        found = self.model(images).argmax(dim=1)
        return found if self._labels is None else self._labels[found]

    def __deepcopy__(self, memo: dict) -> "Teacher":
        return self


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """A timm model with its loss, as mmengine's loops call it.

    Args:
        backbone: arguments of ``timm.create_model``: ``name`` of the model, ``num_classes``, ``drop_path_rate`` ...
        label_smoothing: for hard labels; mixup smooths mixed labels itself.
        data_preprocessor: see `ClassificationPreprocessor`.
        teacher: see `Teacher`, for models with a distillation head: half of the loss is then that of this head on what
            the teacher says of the same images. It is built when a training begins.

    Attributes:
        second_loss: of images and logits, added to that of the labels; a hook of the training sets it (`MESAHook`).

    Raises:
        ConfigError: unknown model name, an argument that the model does not take, mixup for other classes, or a teacher
            for a model that cannot learn from one.

    Example:
        >>> classifier = ImageClassifier(dict(name="test_vit", num_classes=10, img_size=32))
        >>> classifier(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        backbone: dict,
        label_smoothing: float = 0.0,
        data_preprocessor: dict | nn.Module | None = None,
        teacher: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor or dict(type="ClassificationPreprocessor"))
        self.arguments = with_name(to_plain(backbone))
        self.backbone = create_model(**self.arguments)
        mixed_classes = getattr(getattr(self.data_preprocessor, "mixup", None), "num_classes", None)
        if mixed_classes not in (None, self.backbone.num_classes):
            raise ConfigError(
                f"mixup makes labels of {mixed_classes} classes, but the model has {self.backbone.num_classes}: "
                f"set data_preprocessor.mixup.num_classes={self.backbone.num_classes}"
            )
        self.hard_loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.soft_loss = SoftTargetCrossEntropy()
        self.second_loss: Callable[[Tensor, Tensor], Tensor] | None = None
        self.teacher = None
        if teacher is not None:
            if not hasattr(self.backbone, "set_distilled_training"):
                raise ConfigError(
                    f"a teacher is given, but {self.arguments['name']!r} has no distillation head; expected a "
                    "model such as groupmamba_tiny, or no model.teacher"
                )
            self.teacher = Teacher(teacher, self.backbone.num_classes)
            self.backbone.set_distilled_training(True)

    def init_weights(self) -> None:
        """Build the teacher, if there is one; timm's constructors have initialised or loaded the model's own weights.

        mmengine calls this before a training. The default calls the backbone's method of this name, which some timm
        models have, and would overwrite pretrained weights.
        """
        if self.teacher is not None:
            self.teacher.load(next(self.parameters()).device)

    def forward(
        self, inputs: Tensor, label: Tensor | None = None, path: list[str] | None = None, mode: str = "tensor"
    ) -> Tensor | dict[str, Tensor] | list[dict]:
        """Run the model in one of mmengine's three modes.

        Args:
            inputs: (batch, channels, height, width).
            label: class indices (batch,) or class probabilities (batch, classes).
            path: the files of the images.
            mode: "tensor" for logits, "loss" for training, "predict" for evaluation.

        Returns:
            Logits (batch, classes); or the losses to sum; or one ``dict(scores, label)`` an image, with scores
            (classes,).
        """
        logits = self.backbone(inputs)
        if mode == "tensor":
            return logits
        if mode == "loss":
            loss = self.soft_loss if label.is_floating_point() else self.hard_loss
            if isinstance(logits, tuple):  # of both heads
                logits, distilled = logits
                labels = loss(logits.float(), label)
                of_teacher = functional.cross_entropy(distilled.float(), self.teacher(inputs))
                return {"loss_labels": labels / 2, "loss_teacher": of_teacher / 2}
            of_labels = loss(logits.float(), label)
            if self.second_loss is not None:
                return {"loss_labels": of_labels, "loss_second": self.second_loss(inputs, logits)}
            return {"loss": of_labels}
        # In float32 the scores of logits that differ by 104, or by little, are equal, and ties count as wrong.
        scores = functional.softmax(logits.cpu().double(), dim=-1)
        return [{"scores": score, "label": target} for score, target in zip(scores, label.cpu(), strict=True)]

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, "OrderedDict[str, Tensor]"]:
        """Sum the losses; log the mean over all processes, so that every process sees the same values."""
        loss, log_vars = super().parse_losses(losses)
        for name, value in log_vars.items():
            value = value.detach().clone()
            all_reduce(value, op="mean")
            log_vars[name] = value
        return loss, log_vars
