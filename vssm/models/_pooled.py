"""timm's contract for networks that end in one map, which is pooled for the classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.layers import ClassifierHead, get_device_dtype
from torch import Tensor, nn

from vssm.models._arguments import check_arguments, checked_pool
from vssm.models._contract import Backbone


class Pooled(Backbone):
    """Pooling, dropout and a linear layer on the last channels-last map.

    A subclass calls `add_head` in its constructor, and sets `num_features` anew before `reset_classifier` where it
    changes what `forward_features` returns.

    Args:
        in_chans: channels of the image.
    """

    output_fmt = "NHWC"
    classifier = "head.fc"
    pools = ("avg", "max", "avgmax", "catavgmax", "")

    def __init__(self, in_chans: int):
        super().__init__()
        self.in_chans = in_chans

    def add_head(
        self,
        num_features: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        head: Callable[..., ClassifierHead] = ClassifierHead,
        **dd: Any,
    ) -> None:
        """The classifier of maps with `num_features` channels, made by `head`; the others are as everywhere in timm."""
        checked_pool(global_pool, self.pools)
        self.num_classes, self.num_features = num_classes, num_features
        self.head = head(
            num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt=self.output_fmt, **dd
        )
        self.head_hidden_size = self.head.num_features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(features, pre_logits=pre_logits)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay, beside one-dimensional tensors and biases.

        That is VMamba's choice, and that of most families after it. official: D is one-dimensional; here: not. A_log
        and dt_bias are decayed: both are two-dimensional there, and the official flag on A_log is read by no optimiser.
        """
        return self.parameters_ending("D")

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier (none for 0 classes), and another pooling where given."""
        check_arguments({"num_classes": num_classes})
        if global_pool is not None:
            checked_pool(global_pool, self.pools)
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, in_features=self.num_features, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features
