"""A family of models as one declaration, from which timm's entry points and configurations are made."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    register_model_deprecations,
    resolve_pretrained_cfg,
)
from torch import Tensor, nn

from vssm.models._arguments import check_arguments
from vssm.models._checkpoint import CheckpointError, fit, our_layout, unwrap
from vssm.models._contract import Backbone, quarters, take_indices, with_defaults, without_defaults
from vssm.models._mixers import MIXERS, resolve_mixer, takes
from vssm.scan import resolve_order


@dataclass(frozen=True)
class TrainingData:
    """What published weights were trained on.

    Args:
        tag: in timm's names of weights and of recipes: the "in1k" of "vim_tiny.hustvl_in1k".
        title: the data set's name.
        hub: its name on the Hugging Face hub, or another one in that form.
        classes: their number.
    """

    tag: str
    title: str
    hub: str
    classes: int


IMAGENET = TrainingData("in1k", "ImageNet-1k", "imagenet-1k", 1000)
IMAGENET_21K = TrainingData("in21k", "ImageNet-21k", "imagenet-21k", 21841)


@dataclass(frozen=True)
class Variant:
    """One size of a family.

    Args:
        name: what timm calls it.
        title: what the paper calls it.
        arguments: of the model class.
        weights: address of the published weights: a file, or a page of Google Drive, which only a browser
            can fetch from; empty where none are published.
        aliases: other names of timm's for the same model.
        cfg: further entries of timm's `pretrained_cfg`, such as "pool_size" or "first_conv".
        model: the model class, where it is not that of the family.
        strides: pixels per position of each map, where they are not those of the family.
        before: what the weights were trained on before the family's data, if anything.
    """

    name: str
    title: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    aliases: tuple[str, ...] = ()
    cfg: Mapping[str, Any] = field(default_factory=dict)
    model: type[Backbone] | None = None
    strides: tuple[int, ...] = ()
    before: TrainingData | None = None

    @property
    def downloadable(self) -> bool:
        """Whether a program can fetch the weights."""
        return bool(self.weights) and "://drive.google.com/" not in self.weights


@dataclass(frozen=True)
class Family:
    """All that the rest of the library asks of a family of models; every file of `vssm.models` ends in one.

    Entry points, configurations, tables, model cards, NOTICE and tests are made from it, and a test names what a family
    still lacks.

    Args:
        title: the family's name, as its authors write it.
        model: the model class; its `renaming` is the official layout of the weights.
        paper: number on arXiv.
        repository: address of the official code.
        commit: of the official code that this family follows.
        license: of the official weights, as the Hugging Face hub writes it; "unknown" where none is published.
        owner: whose weights they are, in timm's tags: "vim_tiny.hustvl_in1k".
        variants: the sizes.
        parts: which part of the paper is which class: (name in the paper, name in the official code, class or function
            here).
        small: for tests, names of variants and the arguments that make each of them quick; at least one.
        strides: pixels per position of each map of the variants; one number where all maps have the same.
        cfg: entries of timm's `pretrained_cfg` that differ from those at 224 pixels with maps of 7 x 7.
        data: what the weights were trained on.
        code_license: of the official code, by its title, where it is another than that of the weights.
        deprecated: names that go away, and the names to use instead (None for nothing): timm warns of them.
        timed: names of the models that docs/zoo.md times beside timm's, if not that of the first variant.
    """

    title: str
    model: type[Backbone]
    paper: str
    repository: str
    commit: str
    license: str
    owner: str
    variants: tuple[Variant, ...]
    small: Mapping[str, Mapping[str, Any]]
    strides: tuple[int, ...]
    parts: tuple[tuple[str, str, Callable[..., Any]], ...] = ()
    cfg: Mapping[str, Any] = field(default_factory=dict)
    data: TrainingData = IMAGENET
    code_license: str = ""
    deprecated: Mapping[str, str | None] = field(default_factory=dict)
    timed: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the module that declares the family: "vim"."""
        return self.model.__module__.rsplit(".", 1)[-1]

    @property
    def models(self) -> dict[str, Variant]:
        """The variant behind every name that timm knows, aliases included."""
        return {name: variant for variant in self.variants for name in (variant.name, *variant.aliases)}

    @property
    def measured(self) -> tuple[str, ...]:
        """The models that docs/zoo.md times beside timm's."""
        return self.timed or (self.variants[0].name,)

    @property
    def default_cfgs(self) -> dict[str, Any]:
        """timm's configurations: the published weights of every name."""
        return generate_default_cfgs({f"{name}.{self._tag(v)}": self._cfg(v) for name, v in self.models.items()})

    def _tag(self, variant: Variant) -> str:
        return f"{self.owner}_{f'{variant.before.tag}_ft_' if variant.before else ''}{self.data.tag}"

    def _cfg(self, variant: Variant) -> dict[str, Any]:
        model = variant.model or self.model
        where = {"url": variant.weights} if variant.downloadable else {"notes": (variant.weights,)}
        return {
            "num_classes": self.data.classes,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": model.first_conv,
            "classifier": model.classifier,
            "custom_load": True,
            "license": self.license,
            "origin_url": self.repository,
            "paper_ids": f"arXiv:{self.paper}",
            **(where if variant.weights else {}),
            **self.cfg,
            **variant.cfg,
        }

    def entry_points(self) -> Iterator[Callable[..., nn.Module]]:
        """A function for every name, as timm's own model files have them."""
        for name, variant in self.models.items():
            yield self._entry_point(name, variant)

    def _entry_point(self, name: str, variant: Variant) -> Callable[..., nn.Module]:
        def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
            return build(variant.model or self.model, name, pretrained, **{**variant.arguments, **kwargs})

        alias = f"; the same as {variant.name}" if name != variant.name else ""
        create.__name__ = create.__qualname__ = name
        create.__module__ = self.model.__module__
        create.__doc__ = (
            f"{variant.title}{alias} (arXiv {self.paper}).\n\n"
            f"Arguments are those of {(variant.model or self.model).__name__}; pretrained=True fetches the weights of "
            f"{self.repository}."
        )
        return create


def register(family: Family) -> None:
    """Make a family known to timm, as if its module had timm's `default_cfgs` and decorated functions itself."""
    module = sys.modules[family.model.__module__]
    module.default_cfgs = family.default_cfgs
    module.checkpoint_filter_fn = our_layout
    for entry_point in family.entry_points():
        setattr(module, entry_point.__name__, register_model(entry_point))
    register_model_deprecations(module.__name__, dict(family.deprecated))


def build(model_class: type[Backbone], variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """timm's builder, with our reading of checkpoints.

    `features_only=True` gives four maps, or all where there are fewer, unless `out_indices` are asked for. A
    `scan_order` may be a name, an order function or a list of them, and so may each of `scan_orders`, one for every
    block; `mixer` may be a name of MIXERS. Models themselves take functions and classes only.

    Raises:
        ValueError: an argument that the model cannot mean.
    """
    if "scan_order" in kwargs:
        kwargs["scan_order"] = resolve_order(kwargs["scan_order"])
    if "scan_orders" in kwargs:
        kwargs["scan_orders"] = [resolve_order(order) for order in kwargs["scan_orders"]]
    if "mixer" in kwargs:
        kwargs["mixer"] = _mixer_for(kwargs["mixer"], kwargs)
    overlay = {"custom_load": True, **(kwargs.pop("pretrained_cfg_overlay", None) or {})}
    check_arguments(without_defaults(model_class, with_defaults(model_class, kwargs)))
    if pretrained:
        _check_obtainable(variant, kwargs.get("pretrained_cfg"), overlay)
    count = model_class.count_maps(kwargs)
    if kwargs.get("features_only") and kwargs.get("out_indices") is not None:
        take_indices(count, kwargs["out_indices"])
    return build_model_with_cfg(
        model_class,
        variant,
        pretrained,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=_fit,
        feature_cfg={"out_indices": quarters(count), "feature_cls": "getter"},
        **kwargs,
    )


def _mixer_for(mixer: Any, arguments: Mapping[str, Any]) -> Any:
    """What `mixer` stands for; ValueError where it has no use for a scan order that is given."""
    made = resolve_mixer(mixer)
    if callable(made) and "scan_order" in arguments and not takes(made, "scan_order"):
        with_order = [name for name, each in MIXERS.items() if takes(each, "scan_order")]
        raise ValueError(
            f"mixer {mixer!r} walks along no scan order: leave scan_order out, or take one of {', '.join(with_order)}"
        )
    return made


def _fit(state: dict[str, Tensor], model: Backbone) -> dict[str, Tensor]:
    """For weights that timm reads itself: from the Hugging Face hub, or handed over in memory."""
    return fit(unwrap(state, "the checkpoint", model.weights_under), model, source="the checkpoint", adapt=True)


def _check_obtainable(variant: str, pretrained_cfg: Any, overlay: dict[str, Any]) -> None:
    """Some authors' weights cannot be fetched by a program: CheckpointError says where they are, and what to do."""
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, overlay)
    if not cfg.has_weights and not cfg.state_dict:
        where = cfg.notes[0] if cfg.notes else cfg.origin_url
        raise CheckpointError(
            f"the weights of {variant} cannot be downloaded by a program: get the file from {where} with a browser, "
            f'then give its path: timm.create_model("{variant}", pretrained=True, pretrained_cfg_overlay='
            f'dict(file="..."))'
        )
