"""One scene of the embedded set: a large shape in front of smaller ones of other kinds, on a cluttered background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from vssm.data.silhouettes import KINDS, SILHOUETTES, Outline

Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]

# These numbers set the difficulty: a small vision Mamba gets more than 90 % after some 30 000 images, and a linear
# classifier on pixels stays below 50 %. Smaller or more tilted large shapes are harder for both; a fixed place or size
# makes the set easy for the linear one.
# Sizes are fractions of the image's side. The large shape gives the label; the small ones are less than half as wide.
LARGE_RADIUS = (0.30, 0.42)
SMALL_RADIUS = (0.06, 0.10)
SMALL_SHAPES = (1, 3)
CLUTTER = (4, 10)
# Largest tilt of the large shape from upright, in radians. The small ones are turned by any angle.
TILT = 0.8
# Backgrounds are dark; shapes of any hue are brighter by at least this much (of 255).
DARKEST_TO_BRIGHTEST_GROUND = (0.0, 110.0)
LEAST_CONTRAST = 100.0
# A small shape with less than this fraction visible is left out, so that every annotated one can be recognised.
LEAST_VISIBLE = 0.6
_BRIGHTNESS = np.array([0.299, 0.587, 0.114])
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Instance:
    """A shape in the scene: its kind (index into KINDS) and its visible pixels, (height, width)."""

    kind: int
    visible: Mask


@dataclass(frozen=True)
class Scene:
    """An image, (height, width, 3) of uint8, and its shapes from front to back: the first one gives the label."""

    image: NDArray[np.uint8]
    instances: list[Instance]

    def class_map(self) -> NDArray[np.uint8]:
        """(height, width): 0 is background, 1 + kind a shape."""
        classes = np.zeros(self.image.shape[:2], dtype=np.uint8)
        for instance in self.instances:
            classes[instance.visible] = instance.kind + 1
        return classes


def draw_scene(random: np.random.Generator, kind: int, size: int) -> Scene:
    """Draw one scene.

    Args:
        random: the only source of randomness; the same state gives the same scene.
        kind: index into KINDS of the large shape in front.
        size: side of the square image in pixels.

    Returns:
        The scene.

    >>> scene = draw_scene(np.random.default_rng(0), kind=4, size=64)
    >>> scene.image.shape, KINDS[scene.instances[0].kind]
    ((64, 64, 3), 'heart')
    """
    background_colour = random.uniform(*DARKEST_TO_BRIGHTEST_GROUND, 3)
    image = _background(random, background_colour, size)
    shapes = _place_shapes(random, kind, size)
    for _, coverage in reversed(shapes):
        filling = _texture(random, _contrasting_colour(random, background_colour), size)
        image += coverage[..., None] * (filling - image)

    hidden = np.zeros((size, size), dtype=bool)
    instances = []
    for shape_kind, coverage in shapes:
        visible = (coverage >= 0.5) & ~hidden
        hidden |= visible
        instances.append(Instance(shape_kind, visible))
    return Scene(_photograph(random, image), instances)


def _place_shapes(random: np.random.Generator, kind: int, size: int) -> list[tuple[int, Pixels]]:
    """Kinds and coverage (height, width) in 0..1 of the large shape and of the small ones, from front to back."""
    shapes = [(kind, _coverage(random, kind, random.uniform(*LARGE_RADIUS), random.uniform(-TILT, TILT), size))]
    taken = shapes[0][1] >= 0.5
    others = [other for other in range(len(KINDS)) if other != kind]
    for _ in range(random.integers(*SMALL_SHAPES, endpoint=True)):
        small_kind = int(random.choice(others))
        coverage = _coverage(random, small_kind, random.uniform(*SMALL_RADIUS), random.uniform(0, 2 * np.pi), size)
        mask = coverage >= 0.5
        if (mask & ~taken).sum() >= max(LEAST_VISIBLE * mask.sum(), 1):
            shapes.append((small_kind, coverage))
            taken |= mask
    return shapes


def _coverage(random: np.random.Generator, kind: int, radius: float, angle: float, size: int) -> Pixels:
    """The fraction of each pixel covered by a turned shape, randomly mirrored, stretched and moved: (size, size)."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.diag([random.choice([-1.0, 1.0]), random.uniform(0.85, 1.15)])
    place = random.uniform(radius, 1 - radius, 2)
    outlines = [(outline @ (turn @ stretch).T * radius + place) * size for outline in SILHOUETTES[KINDS[kind]]()]
    return _rasterise(outlines, size)


def _rasterise(outlines: list[Outline], size: int) -> Pixels:
    """Anti-aliased coverage of the first outline without the others (holes), all in pixels."""
    canvas = Image.new("L", (size * _SUPERSAMPLING, size * _SUPERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    for position, outline in enumerate(outlines):
        draw.polygon([tuple(point) for point in outline * _SUPERSAMPLING], fill=255 if position == 0 else 0)
    return np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float32) / 255


def _contrasting_colour(random: np.random.Generator, background: NDArray[np.float64]) -> NDArray[np.float64]:
    while True:
        colour = random.uniform(0, 255, 3)
        if (colour - background) @ _BRIGHTNESS >= LEAST_CONTRAST:
            return colour


def _background(random: np.random.Generator, colour: NDArray[np.float64], size: int) -> Pixels:
    """A textured background with strokes and blobs of similar colours: (size, size, 3)."""
    ground = _texture(random, colour, size)
    canvas = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for _ in range(random.integers(*CLUTTER, endpoint=True)):
        near = tuple(int(value) for value in np.clip(colour + random.normal(0, 30, 3), 0, 255))
        start = random.uniform(0, size, 2)
        if random.random() < 0.5:
            end = start + random.normal(0, 0.4 * size, 2)
            draw.line([tuple(start), tuple(end)], fill=near, width=max(1, round(size * random.uniform(0.01, 0.04))))
        else:
            corners = start + random.normal(0, 0.08 * size, (int(random.integers(3, 7)), 2))
            draw.polygon([tuple(corner) for corner in corners], fill=near)
    return np.asarray(canvas, dtype=np.float32)


def _texture(random: np.random.Generator, colour: NDArray[np.float64], size: int) -> Pixels:
    """A surface of one colour, shaded by a pattern (plain, stripes, checks, dots or clouds): (size, size, 3)."""
    angle = random.uniform(0, 2 * np.pi)
    wave = 2 * np.pi * random.uniform(3, 10) / size
    row, column = np.mgrid[:size, :size].astype(np.float32)
    along = wave * (np.cos(angle) * column + np.sin(angle) * row)
    across = wave * (np.cos(angle) * row - np.sin(angle) * column)
    patterns = (
        lambda: np.zeros((size, size), dtype=np.float32),
        lambda: np.sign(np.sin(along)),
        lambda: np.sign(np.sin(along) * np.sin(across)),
        lambda: np.sign(np.sin(along) + np.sin(across) - 1.0),
        lambda: _clouds(random, size),
    )
    pattern = patterns[random.integers(len(patterns))]()
    tint = random.normal(0, 14, 3)
    return (colour + pattern[..., None] * tint).astype(np.float32)


def _clouds(random: np.random.Generator, size: int) -> Pixels:
    """Smooth noise of a few cells across: (size, size), about -1..1."""
    cells = int(random.integers(3, 8))
    coarse = Image.fromarray(random.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _photograph(random: np.random.Generator, image: Pixels) -> NDArray[np.uint8]:
    """Apply light from one side, blur and sensor noise."""
    size = image.shape[0]
    angle = random.uniform(0, 2 * np.pi)
    row, column = np.mgrid[:size, :size] / size - 0.5
    slope = random.uniform(0, 0.4)
    light = random.uniform(0.8, 1.15) + slope * (np.cos(angle) * column + np.sin(angle) * row)
    lit = Image.fromarray(np.clip(image * light[..., None], 0, 255).astype(np.uint8))
    blurred = np.asarray(lit.filter(ImageFilter.GaussianBlur(random.uniform(0, 0.01) * size)), dtype=np.float32)
    noise = random.normal(0, random.uniform(0, 8), image.shape)
    return np.clip(blurred + noise, 0, 255).astype(np.uint8)
