"""The picture of predictions: size, file, and marks for right and wrong."""

from pathlib import Path

import pytest
from PIL import Image, ImageColor

from vssm.viz import draw_predictions
from vssm.viz.predictions import RIGHT, UNJUDGED, WRONG


def colours(file: Path) -> set[tuple[int, int, int]]:
    with Image.open(file) as picture:
        assert picture.format == "PNG"
        return {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=1 << 24)}


def has(file: Path, colour: str) -> bool:
    return ImageColor.getrgb(colour) in colours(file)


IMAGE = Image.new("RGB", (40, 30), "white")
PREDICTION = [("heart", 0.7), ("disc", 0.2), ("ring", 0.1)]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_right_wrong_and_unjudged_have_colours_of_their_own(tmp_path: Path, count: int) -> None:
    images, predictions = [IMAGE] * count, [PREDICTION] * count
    right = draw_predictions(images, predictions, ["heart"] * count, path=tmp_path / "new" / "right.png")
    wrong = draw_predictions(images, predictions, ["disc"] * count, path=tmp_path / "wrong.png")
    unjudged = draw_predictions(images, predictions, path=tmp_path / "unjudged.png")
    assert has(right, RIGHT) and not has(right, WRONG)
    assert has(wrong, WRONG) and not has(wrong, RIGHT)
    assert has(unjudged, UNJUDGED) and not has(unjudged, RIGHT) and not has(unjudged, WRONG)


def test_images_of_any_mode_and_shape(tmp_path: Path) -> None:
    images = [Image.new("L", (300, 20)), Image.new("RGBA", (1, 200)), Image.new("P", (5, 5))]
    predictions = [[("a name that is far too long for any card of this picture to hold it all", 1.0)]] * 3
    assert draw_predictions(images, predictions, path=tmp_path / "a.png").is_file()


def test_a_longer_bar_is_a_higher_probability(tmp_path: Path) -> None:
    def blue_pixels(probability: float) -> int:
        file = draw_predictions([IMAGE] * 2, [[("heart", probability)]] * 2, path=tmp_path / f"{probability}.png")
        with Image.open(file) as picture:
            return dict((colour, count) for count, colour in picture.getcolors(1 << 24))[ImageColor.getrgb(UNJUDGED)]

    assert blue_pixels(0.3) < blue_pixels(0.6) < blue_pixels(0.9)


def test_numbers_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 images and 1 predictions"):
        draw_predictions([IMAGE] * 2, [PREDICTION], path=tmp_path / "a.png")
    with pytest.raises(ValueError, match="2 images and 1 truths"):
        draw_predictions([IMAGE] * 2, [PREDICTION] * 2, ["heart"], path=tmp_path / "a.png")
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_predictions([], [], path=tmp_path / "a.png")
