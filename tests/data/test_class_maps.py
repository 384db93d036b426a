"""Class maps are compared with their images and counted before a training; other values can be given a meaning."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vssm.data import DataError
from vssm.data.class_maps import Meaning, check_class_maps, check_contents, read_class_map, to_labels


def test_class_maps_beside_images(tmp_path: Path) -> None:
    images, maps = tmp_path / "images", tmp_path / "maps"
    for folder in (images, maps):
        folder.mkdir()
    with pytest.raises(DataError, match=r"no images \*\.jpg"):
        check_class_maps(images, maps, ".jpg", ".png")
    for name in ("a", "b"):
        (images / f"{name}.jpg").touch()
    (maps / "a.png").touch()
    os.mkfifo(maps / "b.png")
    with pytest.raises(DataError, match=r"1 of 2 images in .* have no class map .*b\.jpg"):
        check_class_maps(images, maps, ".jpg", ".png")
    (maps / "b.png").unlink()
    (maps / "b.png").touch()
    check_class_maps(images, maps, ".jpg", ".png")


def test_an_unknown_value_in_a_class_map() -> None:
    classes = np.zeros((4, 4), np.uint8)
    classes[0] = 255
    meaning = Meaning([f"class {i}" for i in range(11)])
    to_labels(classes, meaning.table(), meaning, "a.png")
    classes[1, :3] = 37
    with pytest.raises(DataError) as caught:
        to_labels(classes, meaning.table(), meaning, "a.png")
    assert "a.png has 3 pixels of the unknown class 37" in str(caught.value) and "0 to 10" in str(caught.value)
    # ADE20K: 0 in the file is ignored, and 1 is the first class.
    meaning = Meaning(meaning.classes, zero_is_ignored=True)
    with pytest.raises(DataError, match=r"unknown class 37: the 11 classes are 1 to 11, and 0 and 255"):
        to_labels(classes, meaning.table(), meaning, "a.png")


@pytest.fixture
def maps(tmp_path: Path) -> Callable[..., None]:
    """Check a set of segmentation whose class maps have some values each."""

    def call(
        *values: object,
        classes: tuple[str, ...] = ("ground", "road"),
        is_training: bool = True,
        ignored_by: tuple = (),
        **use: object,
    ) -> None:
        for folder in ("images", "maps"):
            (tmp_path / folder).mkdir(exist_ok=True)
        for number, each in enumerate(values):
            image = each if isinstance(each, Image.Image) else Image.fromarray(np.array(each, np.uint8).reshape(1, -1))
            image.save(tmp_path / f"maps/{number}.png")
            if not (tmp_path / f"images/{number}.jpg").exists():
                Image.new("RGB", image.size).save(tmp_path / f"images/{number}.jpg")
        pairs = check_class_maps(tmp_path / "images", tmp_path / "maps", ".jpg", ".png")
        check_contents(pairs, Meaning(classes, **use), is_training=is_training, ignored_by=ignored_by)

    return call


def test_classes_are_counted(maps: Callable, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vssm"):
        maps([0, 0, 1, 255], [0, 0, 0, 0])
    assert "2 class maps in" in caplog.text and "ground 75.0%, road 12.5%; ignored 12.5%" in caplog.text


@pytest.mark.parametrize("is_training", [True, False])
def test_the_commonest_binary_masks(maps: Callable, is_training: bool) -> None:
    with pytest.raises(DataError, match=r"values 0, 255, and the only class is ground.*pixel_values=\(0, 255\)"):
        maps([0, 255], [0, 0], is_training=is_training)
    maps([0, 255], [0, 0], pixel_values=(0, 255), is_training=is_training)


@pytest.mark.parametrize("is_training", [True, False])
def test_masks_of_ignored_pixels_only(maps: Callable, is_training: bool) -> None:
    with pytest.raises(DataError, match="the value 255, and no pixel has a class: 100% of the pixels are ignored"):
        maps([255, 255], is_training=is_training)
    with pytest.raises(DataError, match=r"have the value 0, and no pixel has a class"):
        maps([0, 0], zero_is_ignored=True, is_training=is_training)


def test_a_single_class_can_be_scored_but_not_learnt(maps: Callable) -> None:
    with pytest.raises(DataError, match="the only class is ground: nothing can be learnt from them"):
        maps([0, 0], [0, 0])
    maps([0, 0], [0, 0], is_training=False)


@pytest.mark.parametrize(
    ("classes", "values", "pixel_values"),
    [
        (("a", "b", "c"), [0, 128, 255], (0, 128, 255)),
        (("a", "b"), [7, 9, 255], (7, 9)),
        (("a",), [0, 255], (0,)),
        (("a", "b"), [5, 0], (0, 5)),
    ],
)
def test_values_of_many_kinds_can_be_mapped(maps: Callable, classes: tuple, values: list, pixel_values: tuple) -> None:
    maps(values, classes=classes, pixel_values=pixel_values)
    with pytest.raises(DataError, match=r"1 pixels of the unknown class 77.*pixel_values"):
        maps([*values[1:], 77], classes=classes, pixel_values=pixel_values)


def test_values_must_be_as_many_as_classes() -> None:
    with pytest.raises(DataError, match=r"2 pixel_values and 3 classes"):
        Meaning(("a", "b", "c"), pixel_values=(0, 255))
    for values in ((0, 1, 1), (0, 1, 256), (0, 1, "2"), (0, 1, 2.0)):
        with pytest.raises(DataError, match="expected whole numbers from 0 to 255, another one for each class"):
            Meaning(("a", "b", "c"), pixel_values=values)


def test_a_rare_class_is_looked_for_in_all_maps(
    maps: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vssm.data.class_maps.COUNTED", 2)
    with caplog.at_level(logging.WARNING, logger="vssm"):
        maps([0, 255], [0, 1], [0, 0], [0, 0])
    assert not caplog.records


def test_a_class_that_is_nowhere_is_named(maps: Callable, caplog: pytest.LogCaptureFixture) -> None:
    maps([0, 1], classes=("ground", "road", "sky"))
    assert "no pixel of 1 of the 3 classes: sky" in caplog.text


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "F"])
def test_maps_of_several_channels(maps: Callable, mode: str, tmp_path: Path) -> None:
    if mode == "F":
        Image.new("F", (4, 1)).save(tmp_path / "f.tif")
        with pytest.raises(DataError, match=r"f\.tif has 1 channel of mode F; expected a class map"):
            read_class_map(str(tmp_path / "f.tif"), str(tmp_path / "f.tif"))
        return
    with pytest.raises(DataError, match=rf"0\.png has \d channels of mode {mode}; expected a class map of one channel"):
        maps(Image.new(mode, (4, 1)))


def test_maps_with_a_palette_and_of_two_levels(maps: Callable) -> None:
    indexed = Image.fromarray(np.array([[0, 1, 1]], np.uint8))
    indexed.putpalette([9, 9, 9, 200, 0, 0])
    maps(indexed)
    maps(Image.fromarray(np.array([[False, True, True]])))


def test_sixteen_bits_do_not_wrap_around(maps: Callable) -> None:
    """Cut to 8 bits, 256 would become class 0 and 257 class 1."""
    with pytest.raises(DataError, match="2 pixels of the unknown class 256, 257"):
        maps(Image.fromarray(np.array([[0, 256, 257]], np.uint16)))
    maps(Image.fromarray(np.array([[0, 1, 255]], np.uint16)))


def test_maps_of_another_size(maps: Callable, tmp_path: Path) -> None:
    maps([0, 1])
    Image.new("RGB", (3, 1)).save(tmp_path / "images/0.jpg")
    with pytest.raises(DataError, match=r"0\.png is 2 x 1 pixels, and its image .*0\.jpg 3 x 1"):
        maps([0, 1])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (2, 1)).save(tmp_path / "images/0.jpg", exif=exif)
    with pytest.raises(DataError, match="EXIF orientation 6; set color_type='color_ignore_orientation'"):
        maps([0, 1])


@pytest.mark.parametrize(("ignored", "values"), [(100, [0, 1, 100]), (255, [0, 1, 255]), (0, [0, 1, 1])])
def test_what_is_ignored_is_so_for_heads_and_metrics_too(maps: Callable, ignored: int, values: list[int]) -> None:
    """Metrics counted pixels with another label than theirs for ignored as wrong: 40.0 in place of 43.8 mIoU."""
    maps(values, ignored=ignored, ignored_by=[("head.ignore_index", ignored)])
    if ignored:
        maps([0, 1, 1], ignored=ignored, ignored_by=[("head.ignore_index", 7)])  # has none to ignore
    with pytest.raises(DataError, match=rf"label {ignored} .*, and metric\.ignore_index is 7: give both the same"):
        maps(values, ignored=ignored, ignored_by=[("head.ignore_index", ignored), ("metric.ignore_index", 7)])


def test_turns_that_sizes_do_not_tell(maps: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Orientation 3 is upside down; class maps are read as they are stored."""
    maps([0, 1])
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (2, 1)).save(tmp_path / "images/0.jpg", exif=exif)
    assert "EXIF" not in caplog.text
    maps([0, 1])
    assert "1 of 1 images that were looked at are turned by their EXIF orientation" in caplog.text


def test_linked_folders_are_followed_and_hidden_files_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder, suffix in (("images", ".jpg"), ("maps", ".png")):
        (tmp_path / f"elsewhere/{folder}").mkdir(parents=True)
        (tmp_path / f"elsewhere/{folder}/a{suffix}").touch()
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part").symlink_to(tmp_path / f"elsewhere/{folder}")
        (tmp_path / folder / "part" / "loop").symlink_to(tmp_path / folder)
        (tmp_path / folder / f"._a{suffix}").touch()
    pairs = check_class_maps(tmp_path / "images", tmp_path / "maps", ".jpg", ".png")
    assert [Path(image).name for image, _ in pairs] == ["a.jpg"] and not caplog.records


def test_images_with_other_endings_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder, names in (("images", ("a.jpg", "b.JPEG", "c.png", "d.jpg")), ("maps", ("a.png", "d.png", "e.png"))):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    assert len(check_class_maps(tmp_path / "images", tmp_path / "maps", ".jpg", ".png")) == 2
    assert "2 of 4 files in" in caplog.text and "b.JPEG, c.png" in caplog.text
    (tmp_path / "maps/b.png").touch()
    assert len(check_class_maps(tmp_path / "images", tmp_path / "maps", ".jpg", ".png")) == 3
    assert "1 files in" in caplog.text and "e.png" in caplog.text
    with pytest.raises(DataError, match=r"no images \*_rgb\.jpg in .*; it has a\.jpg, b\.JPEG"):
        check_class_maps(tmp_path / "images", tmp_path / "maps", "_rgb.jpg", ".png")


@pytest.mark.parametrize("learnt", [("b", "a"), ("b",), ("a", "b", "c")])
def test_classes_of_maps_go_by_name(learnt: tuple[str, ...]) -> None:
    table = Meaning(learnt, file_classes=("a", "b")).table()
    assert [learnt[label] if label < 3 else None for label in table[[0, 1]]] == [
        name if name in learnt else None for name in ("a", "b")
    ]


def test_greys_of_a_gif(tmp_path: Path) -> None:
    """Pillow writes the numbers 0 to 3 for the values here, and each file has other ones."""
    values = np.array([[3, 5, 9, 120]], dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "map.gif")
    assert read_class_map(str(tmp_path / "map.gif"), "map.gif").tolist() == values.tolist()
    coloured = Image.fromarray(values)
    coloured.putpalette([(7 * place) % 256 for place in range(768)])
    coloured.save(tmp_path / "colours.gif")
    with pytest.raises(DataError, match=r"colours\.gif is a GIF in colour.*save class maps as PNG"):
        read_class_map(str(tmp_path / "colours.gif"), "colours.gif")


def test_a_jpeg_does_not_keep_values(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 3).save(tmp_path / "map.jpg")
    with pytest.raises(DataError, match=r"map\.jpg is a JPEG, which changes the values of pixels"):
        read_class_map(str(tmp_path / "map.jpg"), "map.jpg")
