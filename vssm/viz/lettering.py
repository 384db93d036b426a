"""Text of any script in pictures: a font that has all its letters, or ASCII escapes of those that no font has."""

from __future__ import annotations

import importlib.util
import os
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Where systems have their fonts.
_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    "%WINDIR%/Fonts",
)
_MOST_FILES = 2000
# No font has a letter here, so this is how each draws one that it lacks.
_NO_LETTER = "\U0010fffe"


@lru_cache(maxsize=4096)
def lettering(text: str, size: int) -> tuple[str, Font]:
    """What to draw for a text, and the font to draw it with.

    Letters that no font on this machine has, and those that cannot be seen, become ASCII escapes, so that two texts
    that differ never look the same; a backslash is doubled then.

    Args:
        text: in any script.
        size: of the letters in pixels.

    >>> lettering("disc", 12)[0]
    'disc'
    >>> lettering("a\\u200bb", 12)[0] == r"a\\u200bb"
    True
    """
    if text.isprintable() and "\\" not in text:
        for font in _fonts(size):
            if all(_has(font, letter) for letter in text):
                return text, font
    best = min(_fonts(size), key=lambda font: sum(not _has(font, letter) for letter in text))
    return "".join(_escaped(letter, best) for letter in text), best


def fitted(text: str, width: float, size: int) -> tuple[str, Font]:
    """The same, shortened with an ellipsis to at most `width` pixels.

    Escapes take much room, so that of names in one script little more than the start is left: a checksum after the
    ellipsis tells them apart.
    """
    drawn, font = lettering(text, size)
    if font.getlength(drawn) <= width:
        return drawn, font
    end = "..." if drawn == text else f"...{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"
    while drawn and font.getlength(drawn + end) > width:
        drawn = drawn[:-1]
    return drawn + end, font


def _escaped(letter: str, font: Font) -> str:
    if letter == "\\":
        return "\\\\"
    if _has(font, letter):
        return letter
    return letter.encode("ascii", "backslashreplace").decode() if ord(letter) > 127 else f"\\x{ord(letter):02x}"


def _fonts(size: int) -> Iterator[Font]:
    """Pillow's own font, then others by and by: opening all the fonts of a system takes a second."""
    yield _default(size)
    for file in _files():
        font = _opened(file, size)
        if font is not None:
            yield font


@lru_cache(maxsize=64)
def _default(size: int) -> Font:
    return ImageFont.load_default(size)


@lru_cache(maxsize=512)
def _opened(file: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(file, size)
    except (OSError, ValueError):  # bitmap fonts of other sizes, and damaged files
        return None


@lru_cache(maxsize=1)
def _files() -> tuple[str, ...]:
    """Font files: that of matplotlib, where it is installed, and the system's."""
    matplotlib = importlib.util.find_spec("matplotlib")
    shipped = Path(matplotlib.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if matplotlib else Path()
    folders = [os.path.expanduser(os.path.expandvars(folder)) for folder in _FOLDERS]
    system = sorted(
        os.path.join(path, name)
        for folder in folders
        for path, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith((".ttf", ".ttc", ".otf"))
    )
    return tuple(([str(shipped)] if shipped.is_file() else []) + system[:_MOST_FILES])


@lru_cache(maxsize=65536)
def _has(font: Font, letter: str) -> bool:
    """Whether a font has a letter: it draws it, and otherwise than one that it lacks."""
    if letter == " " or not letter.isprintable():
        return letter == " "
    drawn = _drawn(font, letter)
    return any(drawn[1]) and drawn != _drawn(font, _NO_LETTER)


def _drawn(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    try:
        mask = font.getmask(letter)
    except UnicodeEncodeError:  # Pillow's bitmap font, where it was built without FreeType
        return (0, 0), b""
    return mask.size, bytes(mask)
