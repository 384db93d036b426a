"""What a value may be: rules that tables of arguments, of models and of configs, are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real


@dataclass(frozen=True)
class Rule:
    """A condition, and what a value should be in words."""

    expected: str
    holds: Callable[[object], bool]


def whole(least: int, most: int) -> Rule:
    """A whole number of a range; True and False are none."""

    def holds(value: object) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool) and least <= value <= most

    return Rule(f"a whole number from {least} to {most}", holds)


def number(least: float, most: float, least_too: bool = True, most_too: bool = True) -> Rule:
    """A finite number of a range; the ends belong to it unless said otherwise."""

    def holds(value: object) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            return False
        above = value >= least if least_too else value > least
        return above and (value <= most if most_too else value < most)

    lower = f"from {least:g}" if least_too else f"above {least:g}"
    return Rule(f"a number {lower} to {'' if most_too else 'below '}{most:g}", holds)


def list_of(rule: Rule) -> Rule:
    """A list or tuple with at least one entry."""

    def holds(value: object) -> bool:
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        return listed and len(value) > 0 and all(map(rule.holds, value))

    return Rule(f"a list, each entry {rule.expected}", holds)


def one_or_pair(rule: Rule) -> Rule:
    """A value, or two of them in a list."""
    pair = list_of(rule)

    def holds(value: object) -> bool:
        return rule.holds(value) or (pair.holds(value) and len(value) == 2)

    return Rule(f"{rule.expected}, or a pair of these", holds)


def optional(rule: Rule) -> Rule:
    """The same, or None."""
    return Rule(f"{rule.expected}, or None", lambda value: value is None or rule.holds(value))


RATE = number(0, 1, most_too=False)
FLAG = Rule("True or False", lambda value: isinstance(value, bool))


def widened(channels: int, ratio: float, name: str) -> int:
    """A number of channels times a ratio, rounded down.

    Raises:
        ValueError: nothing is left; names the ratio.

    >>> widened(16, 2.5, "mlp_ratio")
    40
    """
    width = int(channels * ratio)
    if width < 1:
        raise ValueError(f"{name} is {ratio}; expected a ratio that leaves at least one of {channels} channels")
    return width


def check_divides(count: int, parts: str, total: int, what: str) -> None:
    """Refuse a number of equal parts that does not divide the whole.

    Raises:
        ValueError: gives both numbers.

    >>> check_divides(3, "heads", 8, "channels")
    Traceback (most recent call last):
    ValueError: 3 heads share 8 channels; expected a number of heads that divides them
    """
    if count < 1 or total % count:
        raise ValueError(f"{count} {parts} share {total} {what}; expected a number of {parts} that divides them")


def check_values(values: Mapping[str, object], rules: Callable[[str], Rule | None], place: str = "") -> None:
    """Refuse the first value that breaks its rule.

    Args:
        values: by name.
        rules: the rule of a name; None where there is none.
        place: written before the name in the error.

    Raises:
        ValueError: the name, what came and what was expected.

    >>> check_values({"depth": 0}, {"depth": whole(1, 9)}.get)
    Traceback (most recent call last):
    ValueError: depth is 0; expected a whole number from 1 to 9
    """
    for name, value in values.items():
        rule = rules(name)
        if rule is not None and not rule.holds(value):
            raise ValueError(f"{place}{name} is {shortened(value)}; expected {rule.expected}")


def shortened(value: object, limit: int = 80) -> str:
    """A value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
