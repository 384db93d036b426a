"""Optimiser wrappers and parameter groups for mmengine."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """Mixed precision in bfloat16, on the CPU too.

    bfloat16 has float32's range, so there is no loss scaler; mmengine's AmpOptimWrapper always has one, and refuses
    the CPU. Arguments are those of mmengine's ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast around the forward pass."""
        with super().optim_context(model), torch.autocast(get_device(), torch.bfloat16):
            yield


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupMatcherOptimWrapperConstructor:
    """Builds the optimiser with timm's parameter groups.

    No weight decay for one-dimensional parameters, biases, and the names that the model's ``no_weight_decay()``
    lists; with ``layer_decay`` the learning rate shrinks from the head to the stem, by the layers that the model's
    ``group_matcher`` names.

    Args:
        optim_wrapper_cfg: ``dict(type, optimizer, clip_grad, accumulative_counts)``.
        paramwise_cfg: ``dict(layer_decay=0.92)``, or None for one learning rate.

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
        self.layer_decay = (paramwise_cfg or {}).get("layer_decay")

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the wrapper around an optimiser of the model's parameters."""
        model = getattr(model, "module", model)
        groups = self.param_groups(timm_model(model))
        grouped = {id(parameter) for group in groups for parameter in group["params"]}
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in grouped]
        if others:
            groups.append({"params": others})
        optimizer = OPTIMIZERS.build(self.optimizer, default_args={"params": groups})
        return OPTIM_WRAPPERS.build(self.wrapper, default_args={"optimizer": optimizer})

    def param_groups(self, model: nn.Module) -> list[dict]:
        """timm's groups, with the scale of each layer turned into its learning rate."""
        decay = self.optimizer.get("weight_decay", 0.0)
        no_decay = getattr(model, "no_weight_decay", set)()
        if self.layer_decay is None:
            return param_groups_weight_decay(model, decay, no_weight_decay_list=no_decay)
        groups = param_groups_layer_decay(model, decay, no_weight_decay_list=no_decay, layer_decay=self.layer_decay)
        return [
            {
                "params": group["params"],
                "weight_decay": group["weight_decay"],
                "lr": self.optimizer["lr"] * group["lr_scale"],
            }
            for group in groups
        ]


def timm_model(model: nn.Module) -> nn.Module:
    """The first part of a model that speaks timm's contract (has a ``group_matcher``), or the model itself."""
    return next((module for module in model.modules() if hasattr(module, "group_matcher")), model)
