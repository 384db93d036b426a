"""The ten kinds of shapes of the embedded set, as outlines: to add one, write a function and list it in SILHOUETTES.

Outlines lie around the origin within a radius of 1, upright, with x to the right and y downwards as in images. The
first is the shape; others are holes in it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Outline = NDArray[np.float64]


def _around(radius: float | Outline, angles: Outline) -> Outline:
    """Points at a radius (one, or one per angle) and angles in radians: (points, 2)."""
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _turn(points: int) -> Outline:
    """Evenly spaced angles in radians, the first pointing up."""
    return np.linspace(0.0, 2 * np.pi, points, endpoint=False) - np.pi / 2


def disc() -> list[Outline]:
    return [_around(0.85, _turn(48))]


def ring() -> list[Outline]:
    return [_around(0.95, _turn(48)), _around(0.52, _turn(48))]


def triangle() -> list[Outline]:
    return [_around(1.0, _turn(3))]


def hourglass() -> list[Outline]:
    wide, waist, high = 0.62, 0.1, 0.78
    return [np.array([[-wide, -high], [wide, -high], [waist, 0], [wide, high], [-wide, high], [-waist, 0]])]


def cross() -> list[Outline]:
    arm, reach = 0.28, 0.95
    corner = np.array([[reach, -arm], [reach, arm], [arm, arm]])
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
    return [np.concatenate([corner @ np.linalg.matrix_power(quarter, turns).T for turns in range(4)])]


def star() -> list[Outline]:
    return [_around(np.where(np.arange(10) % 2 == 0, 1.0, 0.4), _turn(10))]


def crescent() -> list[Outline]:
    """A disc without a second disc: from tip to tip along the outer edge, and back along the inner one."""
    tip = np.deg2rad(62.0)
    outer = _around(1.0, np.linspace(tip, 2 * np.pi - tip, 40))
    centre, inner_radius = 0.62, np.hypot(np.cos(tip) - 0.62, np.sin(tip))
    inner_tip = np.arctan2(np.sin(tip), np.cos(tip) - centre)
    inner = _around(inner_radius, np.linspace(2 * np.pi - inner_tip, inner_tip, 40)) + np.array([centre, 0.0])
    return [0.9 * (np.concatenate([outer, inner]) + np.array([0.2, 0.0]))]


def heart() -> list[Outline]:
    t = np.linspace(0.0, 2 * np.pi, 60, endpoint=False)
    x = 16 * np.sin(t) ** 3
    height = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [np.stack([x, -height - 2.0], axis=1) / 17.9]


def arrow() -> list[Outline]:
    half = [[0.0, -1.0], [0.72, -0.15], [0.24, -0.15], [0.24, 0.95]]
    return [np.array(half + [[-x, y] for x, y in reversed(half[1:])])]


def spiral() -> list[Outline]:
    """One and a half turns of a band of constant width."""
    angles = np.linspace(0.0, 3.2 * np.pi, 64)
    middle = 0.12 + 0.7 * angles / angles[-1]
    width = 0.13
    return [np.concatenate([_around(middle + width, angles), _around(middle - width, angles)[::-1]])]


# Sorted by name, as class folders are, so that an index is the label everywhere.
SILHOUETTES: dict[str, Callable[[], list[Outline]]] = {
    function.__name__: function
    for function in (arrow, crescent, cross, disc, heart, hourglass, ring, spiral, star, triangle)
}
KINDS: tuple[str, ...] = tuple(SILHOUETTES)
