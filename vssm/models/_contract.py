"""timm's contract for a vision backbone: what models of every shape have in common."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from timm.models._features import feature_take_indices
from torch import Tensor, nn

from vssm.models._arguments import check_arguments
from vssm.models._checkpoint import WEIGHTS_UNDER, Renaming, load_checkpoint
from vssm.values import shortened

Indices = int | Sequence[int] | None


class Backbone(nn.Module):
    """An image goes in, logits come out; maps of intermediate depths are `forward_intermediates`.

    `Pyramid` and `Plain` implement the contract for two shapes of network. Another shape (several branches, say)
    implements the methods that raise NotImplementedError here, beside timm's `reset_classifier`, `get_classifier`,
    `set_grad_checkpointing` and `group_matcher`.

    Attributes:
        renaming: the official layout of the weights.
        weights_under: the keys that weights are looked for under in a training checkpoint, in this order.
        weights_notice: what a warning says once, when weights in the official layout are read; empty for none.
        output_norm_eps: of the layer norms that official detectors and segmentors put on the maps.
        first_conv, classifier: names of the layers whose shapes follow the image's channels and the classes.
        output_fmt: layout of `forward_features`: "NHWC" for a map, "NLC" for tokens.
        feature_info: for each map of `forward_intermediates` its channels ("num_chs"), its stride in pixels
            ("reduction") and the module that makes it ("module").
        num_features: channels of `forward_features`.
        head_hidden_size: channels that the classifier reads.
    """

    renaming: ClassVar[Renaming] | Renaming = Renaming()
    weights_under: Sequence[str] = WEIGHTS_UNDER
    weights_notice: ClassVar[str] = ""
    output_norm_eps: ClassVar[float] = 1e-5
    first_conv: str
    classifier: str | tuple[str, ...]
    output_fmt: str
    num_features: int
    head_hidden_size: int
    feature_info: list[dict[str, Any]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _self, *others = inspect.signature(cls.__init__).parameters.values()
        cls.__signature__ = inspect.Signature(others)  # __new__ would hide it before Python 3.11

    def __new__(cls, *arguments: Any, **named: Any) -> Backbone:
        """Check the arguments before a constructor computes with them.

        Raises:
            ValueError: values that no model can mean; names the argument, what came and what was expected.
        """
        try:
            given = inspect.signature(cls).bind_partial(*arguments, **named).arguments
        except TypeError:  # which __init__ says in Python's words
            given = {}
        check_arguments(without_defaults(cls, with_defaults(cls, given)))
        return super().__new__(cls)

    def __prepare_scriptable__(self) -> Backbone:
        """Called by torch.jit.script, which cannot read how operators are chosen.

        Raises:
            TypeError: says what does work.
        """
        raise TypeError(
            f"torch.jit.script cannot read {type(self).__name__}; use torch.jit.trace(model, images), torch.compile or "
            "tools/export.py"
        )

    @classmethod
    def count_maps(cls, arguments: Mapping[str, Any]) -> int:
        """How many maps a model with these arguments gives; known before it is built."""
        raise NotImplementedError

    def resize_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict under our names, completed for this model: weights that depend on the image's size are resized
        to its own, and those that official files lack are added."""
        return state

    def load_pretrained(self, path: str) -> None:
        """Called by timm for `pretrained=True`: another number of classes or input channels is adapted to."""
        load_checkpoint(self, path, adapt=True)

    def forward_features(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the last map or tokens, normed, laid out as `output_fmt` says."""
        raise NotImplementedError

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward_features` returns -> (batch, classes); pooled features alone with `pre_logits`."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        image: Tensor,
        indices: Indices = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of chosen depths, and the final features.

        Args:
            image: (batch, channels, height, width).
            indices: which maps of `feature_info`, in the order in which they are to be given; an integer means the last
                so many, None all.
            norm: apply the final norm to maps of the last stage.
            stop_early: leave out what comes after the last chosen map.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: return the list of maps alone.
        """
        raise NotImplementedError

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the chosen maps do not need; returns their numbers."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, classes)."""
        return self.forward_head(self.forward_features(image))

    def parameters_without_effect(self) -> set[str]:
        """Names of the parameters that change no output, and are there because the official weights have them."""
        return set()

    def parameters_ending(self, *endings: str) -> set[str]:
        """Names of the parameters whose last part is one of `endings`."""
        return {name for name, _ in self.named_parameters() if name.rsplit(".", 1)[-1] in endings}


def with_defaults(model_class: type[Backbone], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model class, and its defaults for those that are not given."""
    parameters = inspect.signature(model_class).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | dict(arguments)


def without_defaults(model_class: type[Backbone], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that say something else than None where that is the default."""
    may_be_none = {p.name for p in inspect.signature(model_class).parameters.values() if p.default is None}
    return {name: value for name, value in arguments.items() if value is not None or name not in may_be_none}


def quarters(count: int) -> tuple[int, ...]:
    """Four of `count` maps, each the last of a quarter; all where there are fewer.

    >>> quarters(24), quarters(4), quarters(2)
    ((5, 11, 17, 23), (0, 1, 2, 3), (0, 1))
    """
    return tuple(sorted({max(count * quarter // 4 - 1, 0) for quarter in (1, 2, 3, 4)}))


def take_indices(count: int, indices: Indices) -> tuple[list[int], int]:
    """The chosen ones of `count` maps, and the last of them.

    Args:
        count: of maps.
        indices: numbers of maps, negative ones from the end; one number for the last so many, None for all.

    Raises:
        ValueError: there are no such maps.

    >>> take_indices(4, [0, -1]), take_indices(4, 2)
    (([0, 3], 3), ([2, 3], 3))
    """
    try:
        taken, last = feature_take_indices(count, indices)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(_told(count, indices)) from error
    if any(isinstance(index, float) for index in taken):
        raise ValueError(_told(count, indices))
    return taken, last


def _told(count: int, indices: Indices) -> str:
    return (
        f"out_indices is {shortened(indices)}; expected a list of numbers from {-count} to {count - 1}, for as many "
        f"maps, or how many of the last, from 1 to {count}"
    )


def check_format(output_fmt: str) -> None:
    """Raises ValueError for a layout of maps that is neither "NCHW" nor "NHWC"."""
    if output_fmt not in ("NCHW", "NHWC"):
        raise ValueError(f'output_fmt is {output_fmt!r}; expected "NCHW" or "NHWC"')


def as_format(channels_last: Tensor, output_fmt: str) -> Tensor:
    """A map (batch, height, width, channels) in another layout."""
    return channels_last.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else channels_last
