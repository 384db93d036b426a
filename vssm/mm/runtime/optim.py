"""Optimiser wrappers and parameter groups for mmengine, and the optimiser LAMB (arXiv 1904.00962), timm's."""

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from timm.models._manipulate import group_with_matcher
from timm.optim import Lamb
from torch import nn

from vssm.errors import ConfigError
from vssm.mm.runtime.distributed import unwrap

OPTIMIZERS.register_module(module=Lamb)  # which torch does not have


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """Mixed precision in bfloat16, on the CPU too.

    bfloat16 has float32's range and needs no loss scaler; mmengine's AmpOptimWrapper always has one, and refuses the
    CPU. Arguments are those of mmengine's ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast around the forward pass."""
        with super().optim_context(model), torch.autocast(get_device(), torch.bfloat16):
            yield


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupMatcherOptimWrapperConstructor:
    """Builds the optimiser with parameter groups from the backbone's ``no_weight_decay`` and ``group_matcher``.

    For classifiers, detectors and segmentors. One-dimensional parameters (norms, biases) and those that
    ``no_weight_decay()`` lists have no weight decay. With ``layer_decay`` the learning rate falls by this factor per
    layer of ``group_matcher``, from the backbone's last layer to its stem; heads, necks and output norms have the full
    rate.

    For other rules, such as weight decay on biases but not on norms, use mmengine's ``DefaultOptimWrapperConstructor``
    with ``custom_keys``.

    Args:
        optim_wrapper_cfg: ``dict(type, optimizer, clip_grad, accumulative_counts)``.
        paramwise_cfg: ``dict(layer_decay=0.92)``, or None for one learning rate.

    Raises:
        ConfigError: another option in `paramwise_cfg`, or layer decay without a learning rate or layers.

    Example:
        >>> import timm
        >>> optimizer = dict(type="AdamW", lr=1e-3, weight_decay=0.05)
        >>> constructor = GroupMatcherOptimWrapperConstructor(dict(optimizer=optimizer), dict(layer_decay=0.5))
        >>> groups = constructor(timm.create_model("test_vit")).optimizer.param_groups
        >>> min(group["lr"] for group in groups) < max(group["lr"] for group in groups) == 1e-3
        True
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.wrapper = {"type": "OptimWrapper", **optim_wrapper_cfg}
        self.optimizer = dict(self.wrapper.pop("optimizer"))
        options = dict(paramwise_cfg or {})
        self.layer_decay = options.pop("layer_decay", None)
        if options:
            raise ConfigError(
                f"optim_wrapper.paramwise_cfg has {', '.join(options)}; expected layer_decay alone: for other options "
                "leave out the constructor, which makes it mmengine's"
            )
        if self.layer_decay is not None and "lr" not in self.optimizer:
            raise ConfigError("optim_wrapper.optimizer has no lr; expected one, for layer_decay to scale")

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the wrapper around an optimiser of the model's parameters."""
        groups = self.param_groups(unwrap(model))
        optimizer = OPTIMIZERS.build(self.optimizer, default_args={"params": groups})
        return OPTIM_WRAPPERS.build(self.wrapper, default_args={"optimizer": optimizer})

    def param_groups(self, model: nn.Module) -> list[dict]:
        """The trainable parameters, by layer and by whether they have weight decay."""
        path, backbone = timm_model(model)
        prefix = f"{path}." if path else ""
        # Under the backbone's own names; a slash keeps its patterns from matching other parameters.
        parameters = [
            (name.removeprefix(prefix) if name.startswith(prefix) else f"/{name}", parameter)
            for name, parameter in model.named_parameters()
        ]
        undecayed = getattr(backbone, "no_weight_decay", set)()
        scales = self._scales(parameters, backbone)
        groups: dict[tuple, dict] = {}
        for name, parameter in parameters:
            if not parameter.requires_grad:
                continue
            decayed = parameter.ndim > 1 and not any(fnmatch(name, pattern) for pattern in undecayed)
            options = {"weight_decay": self.optimizer.get("weight_decay", 0.0) if decayed else 0.0}
            if self.layer_decay is not None:
                options["lr"] = self.optimizer["lr"] * scales[name]
            groups.setdefault(tuple(options.items()), {"params": [], **options})["params"].append(parameter)
        return list(groups.values())

    def _scales(self, parameters: list[tuple[str, nn.Parameter]], backbone: nn.Module) -> dict[str, float]:
        """The factor of each parameter's learning rate; 1 for the last layer, which includes the head."""
        if self.layer_decay is None:
            return {}
        if not hasattr(backbone, "group_matcher"):
            raise ConfigError(
                f"layer_decay needs a model with layers (a group_matcher), but {type(backbone).__name__} has none: "
                "leave out paramwise_cfg.layer_decay"
            )
        layers = group_with_matcher(parameters, backbone.group_matcher(coarse=False), reverse=True)
        last = max(layers.values())
        return {name: self.layer_decay ** (last - layer) for name, layer in layers.items()}


def timm_model(model: nn.Module) -> tuple[str, nn.Module]:
    """The name and module of the first part of a model with a ``group_matcher``; without one, the model itself."""
    parts = ((path, part) for path, part in model.named_modules() if hasattr(part, "group_matcher"))
    return next(parts, ("", model))
