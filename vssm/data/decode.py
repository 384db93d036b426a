"""The rules for reading images, the same in training, evaluation and prediction.

An image of any kind becomes 8-bit RGB, upright as its EXIF orientation says, or one sentence says why it cannot.
"""

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
# The longer side over the shorter one. Transforms enlarge the shorter side to some 256 pixels, and the other with it.
MAX_ASPECT = 500
# Endings of the names of images, in any case. Pillow reads AVIF and JPEG 2000 where it was built with them.
_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".pbm",
    ".pnm", ".jp2", ".avif",
)  # fmt: skip
Image.init()
IMAGE_SUFFIXES = tuple(suffix for suffix in _SUFFIXES if Image.registered_extensions().get(suffix) in Image.OPEN)

_ORIENTATION_TAG = 0x0112
_BITS_TAG = 258  # of a TIFF: Pillow gives those of 12 bits as they are, in 16
# How an image is turned to be upright, by its EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DataError(ValueError):
    """Data that cannot be used. The message names them and says what to do."""


class BadImageError(DataError):
    """A file that cannot be read as an image. The message names it."""


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as an image's does, in any case; hidden files are none.

    >>> is_image_name("a/b.JPEG"), is_image_name("notes.txt"), is_image_name("a/._b.jpg")
    (True, False, False)
    """
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.rpartition("/")[2].startswith(".")


def read_rgb(file: str | IO[bytes], path: str, *, upright: bool = True) -> Image.Image:
    """Decode a file into an 8-bit RGB image.

    Args:
        file: a path or an open binary file.
        path: what errors call it.
        upright: apply the EXIF orientation; otherwise the pixels stay as they are stored.

    Returns:
        The image, fully decoded. Of an animation the first frame.

    Raises:
        BadImageError: no regular file, or one that is truncated, corrupt, not an image, of more than MAX_PIXELS pixels
            or more oblong than MAX_ASPECT, or with values of no known range.
    """
    try:
        if isinstance(file, str):
            check_regular(file)
        with Image.open(file) as image:
            _check_size(*image.size)  # in the file's head: nothing is decoded yet
            image.load()
            return to_rgb(image, upright=upright)
    except _DECODING_ERRORS as error:
        raise BadImageError(f"{path} cannot be read as an image: {error}") from error


def decoded_rgb(image: Image.Image, path: str) -> Image.Image:
    """The same of an image that another reader has decoded.

    Raises:
        BadImageError: as for `read_rgb`.
    """
    try:
        _check_size(*image.size)
        return to_rgb(image)
    except _DECODING_ERRORS as error:
        raise BadImageError(f"{path} cannot be read as an image: {error}") from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are too many; expected at most {MAX_PIXELS:,} in all")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width} x {height} pixels are too oblong; expected at most {MAX_ASPECT} to 1")


def read_size(path: str) -> tuple[tuple[int, int], int]:
    """The size of an image as stored, (width, height), and its EXIF orientation (1 to 8), from the head of the file.

    Raises:
        BadImageError: as for `read_rgb`, as far as the head tells.
    """
    try:
        check_regular(path)
        with Image.open(path) as image:
            # Pillow turns a TIFF itself, and gives its size after that.
            return image.size, 1 if image.format == "TIFF" else orientation(image)
    except _DECODING_ERRORS as error:
        raise BadImageError(f"{path} cannot be read as an image: {error}") from error


def to_rgb(image: Image.Image, *, upright: bool = True) -> Image.Image:
    """Convert a decoded image of any mode to 8-bit RGB.

    16-bit values, and 12-bit ones of a TIFF, are scaled to 8 bits; Pillow's own conversion clips them, so that nearly
    every pixel becomes white. Transparent images are composed over white, because the colours beneath transparent
    pixels are arbitrary and often black. A single channel is repeated; Pillow converts palettes, CMYK and other colour
    spaces.

    Args:
        image: fully decoded.
        upright: apply the EXIF orientation.

    Raises:
        ValueError: floating-point, signed or 32-bit pixels, whose range is unknown.

    >>> to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    turn = _UPRIGHT.get(orientation(image)) if upright else None
    colours = _colours(image)
    if turn is not None:
        colours = colours.transpose(turn)
        colours.info.clear()  # of the file: by its EXIF orientation the image would be turned once more
    return colours


def _colours(image: Image.Image) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        kind = "floating-point" if image.mode == "F" else "signed or 32-bit"
        raise ValueError(f"its pixels are {kind} numbers of unknown range; save it with 8 or 16 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        bits = image.tag_v2.get(_BITS_TAG, (16,))[0] if image.format == "TIFF" else 16
        most = (1 << bits) - 1
        values = np.asarray(image).astype(np.int64).clip(0, most)
        return Image.fromarray(((255 * values + most // 2) // most).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # saves a copy


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1 to 8; 1 (upright) where it has none, or a damaged one.

    >>> orientation(Image.new("RGB", (2, 2)))
    1
    """
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # EXIF is written by many devices, and parsing a damaged one raises anything
        return 1
    return value if value in _UPRIGHT else 1
