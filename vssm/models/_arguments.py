"""What the arguments of models may be, by name: every family is checked against this one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from vssm.values import FLAG, RATE, Rule, check_values, list_of, number, one_or_pair, shortened, whole


def _is_device(value: object) -> bool:
    if not isinstance(value, str):
        return value is None or isinstance(value, torch.device)
    try:
        torch.device(value)
    except RuntimeError:
        return False
    return True


_POOLS = ("avg", "max", "avgmax", "catavgmax", "token", "map", "")
_MADE_BY_CALL = Rule("a class or function", callable)
# The upper bounds lie far above every published model: they refuse what would only fill the memory.
_CHANNELS, _BLOCKS, _PIXELS = whole(1, 16_384), whole(1, 1024), whole(1, 65_536)

_RULES = {
    "in_chans": _CHANNELS,
    "num_classes": whole(0, 2**24),
    "img_size": one_or_pair(_PIXELS),
    "patch_size": whole(1, 1024),
    "stride": whole(1, 1024),
    "embed_dim": _CHANNELS,
    "first_dim": _CHANNELS,
    "dims": list_of(_CHANNELS),
    "depth": _BLOCKS,
    "depths": list_of(_BLOCKS),
    "heads": list_of(whole(1, 1024)),
    "blocks": _BLOCKS,
    "window_heads": list_of(whole(1, 1024)),
    "windows": list_of(whole(1, 4096)),
    "scanned_stages": whole(0, 1024),
    "state": whole(1, 1024),
    "pool_heads": whole(1, 1024),
    "expansion": number(0, 64, least_too=False),
    "mlp_ratio": number(0, 64),
    "mlp_ratios": list_of(number(0, 64)),
    "layer_scale": number(0, 64),
    "stem_width": _CHANNELS,
    "conv_bias": FLAG,
    "gated": FLAG,
    "se_lpu": FLAG,
    "random_path": FLAG,
    "normal_init": FLAG,
    "seed": whole(0, 2**63 - 1),
    "stem_depth": whole(0, 64),
    "conv_blocks": whole(0, 1024),
    "neck_maps": FLAG,
    "post_norm": FLAG,
    "stem": _MADE_BY_CALL,
    "downsample": _MADE_BY_CALL,
    "mixer": _MADE_BY_CALL,
    "scan_order": Rule("a function of vssm.scan (timm.create_model takes names too)", callable),
    "scan_orders": list_of(_MADE_BY_CALL),
    "official_columns": FLAG,
    "layer_norm": FLAG,
    "routes": list_of(_MADE_BY_CALL),
    "threshold": number(0, 64),
    "global_pool": Rule(f"one of {_POOLS}", lambda value: value in _POOLS),
    "device": Rule("a device, such as 'cpu' or 'cuda:1', or None", _is_device),
    "dtype": Rule("a dtype, such as torch.bfloat16, or None", lambda value: isinstance(value, torch.dtype | None)),
}


def check_arguments(arguments: Mapping[str, object]) -> None:
    """Refuse values that no model can mean; names that are not in the table are not checked.

    Every name that ends in "_rate" is a rate.

    Args:
        arguments: of a model, by name.

    Raises:
        ValueError: names the argument, what came and what was expected.

    >>> check_arguments({"drop_path_rate": 1.5})
    Traceback (most recent call last):
    ValueError: drop_path_rate is 1.5; expected a number from 0 to below 1
    """
    check_values(arguments, _rule_of)
    dims = arguments.get("dims")
    for name in ("depths", "heads", "mlp_ratios"):
        others = arguments.get(name)
        if dims is not None and others is not None and len(dims) != len(others):
            raise ValueError(
                f"dims has {len(dims)} entries and {name} {len(others)}; expected as many, one for each stage: "
                f"{shortened(dims)} and {shortened(others)}"
            )


def checked_pool(global_pool: str, pools: Sequence[str]) -> str:
    """The pooling, if it is one of those that a model has.

    >>> checked_pool("token", ("avg", "max", ""))
    Traceback (most recent call last):
    ValueError: global_pool is 'token'; expected one of ('avg', 'max', ''); "" is for none
    """
    if global_pool not in pools:
        raise ValueError(f'global_pool is {global_pool!r}; expected one of {tuple(pools)}; "" is for none')
    return global_pool


def _rule_of(name: str) -> Rule | None:
    return RATE if name.endswith("_rate") else _RULES.get(name)
