"""What the arguments of models may be, by name: every family is checked against this one table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch


@dataclass(frozen=True)
class _Rule:
    expected: str
    holds: Callable[[object], bool]


def _whole(least: int, most: int) -> _Rule:
    def holds(value: object) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool) and least <= value <= most

    return _Rule(f"a whole number from {least} to {most}", holds)


def _factor(with_zero: bool, most: int = 64) -> _Rule:
    """A finite number; zero where it switches a part off."""

    def holds(value: object) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            return False
        return (value >= 0 if with_zero else value > 0) and value <= most

    return _Rule(f"a number from 0 to {most}" if with_zero else f"a number above 0, up to {most}", holds)


def _list_of(rule: _Rule) -> _Rule:
    def holds(value: object) -> bool:
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        return listed and len(value) > 0 and all(map(rule.holds, value))

    return _Rule(f"a list, each entry {rule.expected}", holds)


def _one_or_pair(rule: _Rule) -> _Rule:
    pair = _list_of(rule)

    def holds(value: object) -> bool:
        return rule.holds(value) or (pair.holds(value) and len(value) == 2)

    return _Rule(f"{rule.expected}, or a pair of these", holds)


def _rate_holds(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= value < 1


def _is_device(value: object) -> bool:
    if not isinstance(value, str):
        return value is None or isinstance(value, torch.device)
    try:
        torch.device(value)
    except RuntimeError:
        return False
    return True


_POOLS = ("avg", "max", "avgmax", "catavgmax", "token", "")
_RATE = _Rule("a number from 0 to below 1", _rate_holds)
_FLAG = _Rule("True or False", lambda value: isinstance(value, bool))
_MADE_BY_CALL = _Rule("a class or function", callable)
# The upper bounds lie far above every published model: they refuse what would only fill the memory.
_CHANNELS, _BLOCKS, _PIXELS = _whole(1, 16_384), _whole(1, 1024), _whole(1, 65_536)

_RULES = {
    "in_chans": _CHANNELS,
    "num_classes": _whole(0, 2**24),
    "img_size": _one_or_pair(_PIXELS),
    "patch_size": _whole(1, 1024),
    "stride": _whole(1, 1024),
    "embed_dim": _CHANNELS,
    "dims": _list_of(_CHANNELS),
    "depth": _BLOCKS,
    "depths": _list_of(_BLOCKS),
    "scanned_stages": _whole(0, 1024),
    "state": _whole(1, 1024),
    "expansion": _factor(with_zero=False),
    "mlp_ratio": _factor(with_zero=True),
    "conv_bias": _FLAG,
    "gated": _FLAG,
    "post_norm": _FLAG,
    "stem": _MADE_BY_CALL,
    "downsample": _MADE_BY_CALL,
    "mixer": _MADE_BY_CALL,
    "scan_order": _MADE_BY_CALL,
    "global_pool": _Rule(f"one of {_POOLS}", lambda value: value in _POOLS),
    "device": _Rule("a device, such as 'cpu' or 'cuda:1', or None", _is_device),
    "dtype": _Rule("a dtype, such as torch.bfloat16, or None", lambda value: isinstance(value, torch.dtype | None)),
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
    for name, value in arguments.items():
        rule = _RATE if name.endswith("_rate") else _RULES.get(name)
        if rule is not None and not rule.holds(value):
            raise ValueError(f"{name} is {_short(value)}; expected {rule.expected}")
    dims, depths = arguments.get("dims"), arguments.get("depths")
    if dims is not None and depths is not None and len(dims) != len(depths):
        raise ValueError(
            f"dims has {len(dims)} entries and depths {len(depths)}; expected as many, one for each stage: "
            f"{_short(dims)} and {_short(depths)}"
        )


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
