"""Decodes an image file of any kind to 8-bit RGB, or says in one sentence why it cannot."""

from __future__ import annotations

import struct
import zlib
from typing import IO

import numpy as np
from PIL import Image

from vssm.files import check_regular

# What Pillow raises on files that are truncated, corrupt, huge or no images at all; FileError is a ValueError.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
# Above this Pillow warns, above twice as many it refuses. Decoded, this many pixels take 0.3 to 0.7 GB.
MAX_PIXELS = 89_478_485


class DataError(ValueError):
    """Data that cannot be used. The message names them and says what to do."""


class BadImageError(DataError):
    """A file that cannot be read as an image. The message names it."""


def read_rgb(file: str | IO[bytes], path: str) -> Image.Image:
    """Decode a file into an 8-bit RGB image.

    Args:
        file: a path or an open binary file.
        path: what errors call it.

    Returns:
        The image, fully decoded. An EXIF orientation is not applied, as in the published ImageNet pipelines.

    Raises:
        BadImageError: no regular file, or one that is truncated, corrupt, not an image, of more than MAX_PIXELS pixels,
            or with values of no known range.
    """
    try:
        if isinstance(file, str):
            check_regular(file)
        with Image.open(file) as image:
            width, height = image.size  # in the file's head: nothing is decoded yet
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels are too many; expected at most {MAX_PIXELS:,} in all")
            image.load()
            return to_rgb(image)
    except _DECODING_ERRORS as error:
        raise BadImageError(f"{path} cannot be read as an image: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB.

    16-bit values are scaled to 8 bits; Pillow's own conversion clips them, so that nearly every pixel becomes white.
    Transparent images are composed over white, because the colours beneath transparent pixels are arbitrary and often
    black. A single channel is repeated; Pillow converts palettes, CMYK and other colour spaces.

    Raises:
        ValueError: floating-point pixels, whose range is unknown.

    >>> to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save it with 8 or 16 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
