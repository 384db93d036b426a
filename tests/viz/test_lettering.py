"""Names in any script are drawn or escaped, and no two different names look the same."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from vssm.viz import draw_predictions, lettering
from vssm.viz.scenes import draw_class_map, draw_objects

NAMES = (
    "猫", "犬", "熊猫", "кошка", "кошки", "γάτα", "قطة", "חתול", "แมว", "고양이", "a\u200bb", "ab", "a\nb", "\u202eab",
    "猫" * 40, "猫" * 39 + "犬", "\\u732b", "\\", "\\\\", "🐈", "🐕", "\x07", "\x08", "\ue000", "\ue001", "\ud800",
    "é", "ß", "",
)  # fmt: skip


@pytest.fixture
def only_pillows_font(monkeypatch: pytest.MonkeyPatch):
    """A machine without any other font."""
    monkeypatch.setattr(lettering, "_files", tuple)
    lettering.lettering.cache_clear()
    yield
    lettering.lettering.cache_clear()


def test_no_two_names_are_drawn_alike() -> None:
    drawn = [lettering.lettering(name, 15)[0] for name in NAMES]
    assert len(set(drawn)) == len(NAMES)
    fitted = [lettering.fitted(name, 120, 15)[0] for name in NAMES]
    assert len(set(fitted)) == len(NAMES)


@pytest.mark.usefixtures("only_pillows_font")
def test_nor_where_no_font_has_their_letters() -> None:
    test_no_two_names_are_drawn_alike()
    assert lettering.lettering("猫 and dog", 15)[0] == r"\u732b and dog"
    for name in NAMES:
        text, font = lettering.lettering(name, 15)
        assert all(lettering._has(font, letter) for letter in text), name


def test_letters_that_a_font_has_are_drawn() -> None:
    pytest.importorskip("matplotlib")
    for name in ("disc", "кошка", "γάτα"):
        text, font = lettering.lettering(name, 15)
        assert text == name and all(lettering._has(font, letter) for letter in text)
    assert lettering.lettering("disc", 15)[1] is lettering._default(15)
    assert lettering.lettering("кошка \ue000", 15)[0] == r"кошка \ue000"


def test_damaged_font_files_are_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(lettering, "_files", lambda: (str(tmp_path / "broken.ttf"),))
    lettering.lettering.cache_clear()
    assert lettering.lettering("猫", 16)[0] == r"\u732b"
    lettering.lettering.cache_clear()


def test_text_is_no_wider_than_asked() -> None:
    for name in ("a name that is far too long for any card", "猫" * 40, "x"):
        text, font = lettering.fitted(name, 100, 15)
        assert font.getlength(text) <= 100
    assert isinstance(font, ImageFont.FreeTypeFont)


PAIRS = [("猫", "犬"), ("кот", "кит"), ("猫" * 40 + "犬", "猫" * 41), ("\ue000", "\ue001")]


@pytest.mark.parametrize(("one", "other"), PAIRS)
@pytest.mark.parametrize("kind", ["portrait", "grid", "objects", "map"])
@pytest.mark.usefixtures("only_pillows_font")
def test_two_names_make_two_pictures(tmp_path: Path, one: str, other: str, kind: str) -> None:
    image, red = Image.new("RGB", (480, 48)), (200, 0, 0)

    def picture(name: str) -> np.ndarray:
        file = tmp_path / "a.png"
        if kind == "objects":
            draw_objects(image, np.array([[4, 20, 30, 40]]), [name], [0.9], [red], path=file)
        elif kind == "map":
            draw_class_map(image, np.zeros((48, 480), int), [name], [red], path=file)
        else:
            count = 1 if kind == "portrait" else 2
            draw_predictions([image] * count, [[(name, 0.9)]] * count, path=file)
        return np.asarray(Image.open(file).convert("RGB"))

    assert not np.array_equal(picture(one), picture(other))
