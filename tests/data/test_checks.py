"""Bad data of detection and segmentation: one sentence each, before anything is trained."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vssm.data import DataError
from vssm.data.checks import check_present
from vssm.data.class_maps import Meaning, check_class_maps, check_contents, read_class_map, to_labels
from vssm.data.coco_check import CocoUse, category_ids, check_coco

CLASSES = ("disc", "star")


@pytest.fixture
def coco(tmp_path: Path) -> dict:
    """Two images with a box each, as a file in the COCO format holds them."""
    (tmp_path / "train").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (32, 32)).save(tmp_path / "train" / name)
    box = dict(bbox=[2, 2, 8, 8], area=64, iscrowd=0, segmentation=[[2, 2, 10, 2, 10, 10, 2, 10]])
    return dict(
        images=[dict(id=1, file_name="a.jpg", height=32, width=32), dict(id=2, file_name="b.jpg", height=32, width=32)],
        annotations=[dict(id=1, image_id=1, category_id=1, **box), dict(id=2, image_id=2, category_id=2, **box)],
        categories=[dict(id=1, name="disc"), dict(id=2, name="star")],
    )


@pytest.fixture
def check(tmp_path: Path, coco: dict) -> Callable[..., None]:
    """Check what `coco` has become."""

    def call(classes: tuple[str, ...] = CLASSES, **use: bool) -> None:
        file = tmp_path / "train.json"
        file.write_text(json.dumps(coco))
        check_coco(file, tmp_path / "train", classes, CocoUse(**use))

    return call


def sentence(caught: pytest.ExceptionInfo) -> str:
    told = str(caught.value)
    assert "\n" not in told and len(told) < 400
    return told


def test_good_data_pass_silently(check: Callable, caplog: pytest.LogCaptureFixture) -> None:
    check()
    assert not caplog.records


def test_a_missing_image(check: Callable, tmp_path: Path) -> None:
    (tmp_path / "train" / "b.jpg").unlink()
    with pytest.raises(DataError) as caught:
        check()
    assert "1 of 2 images" in sentence(caught) and "b.jpg" in sentence(caught) and "data_prefix" in sentence(caught)


def test_pipes_are_not_waited_for(check: Callable, tmp_path: Path) -> None:
    (tmp_path / "train" / "b.jpg").unlink()
    os.mkfifo(tmp_path / "train" / "b.jpg")
    with pytest.raises(DataError, match=r"1 of 2 images .*b\.jpg"):
        check()
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match="it is a named pipe"):
        check_coco(tmp_path / "pipe.json", tmp_path, CLASSES)


def test_images_in_folders_are_found(check: Callable, coco: dict, tmp_path: Path) -> None:
    (tmp_path / "train" / "part").mkdir()
    (tmp_path / "train" / "b.jpg").rename(tmp_path / "train" / "part" / "b.jpg")
    coco["images"][1]["file_name"] = "part/b.jpg"
    check()


@pytest.mark.parametrize("bbox", [[2, 2, 8, 0], [2, 2, 0, 8], [2, 2, -3, 8]])
def test_a_box_of_no_area(check: Callable, coco: dict, caplog: pytest.LogCaptureFixture, bbox: list) -> None:
    coco["annotations"].append({**coco["annotations"][0], "id": 7, "bbox": bbox})
    check()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for part in ("1 of 3 boxes", "left out", "annotation 7 of a.jpg"):
        assert part in record.getMessage()


@pytest.mark.parametrize(("left_out", "told"), [(True, "are left out"), (False, "serve as background")])
def test_an_image_without_objects(
    check: Callable, coco: dict, caplog: pytest.LogCaptureFixture, left_out: bool, told: str
) -> None:
    del coco["annotations"][1]
    check(empty_left_out=left_out)
    (record,) = caplog.records
    for part in ("1 of 2 images", told, "b.jpg"):
        assert part in record.getMessage()


def test_no_objects_at_all(check: Callable, coco: dict) -> None:
    coco["annotations"].clear()
    with pytest.raises(DataError) as caught:
        check()
    assert "none of its 2 images has an object" in sentence(caught)


def test_an_unknown_category(check: Callable, coco: dict) -> None:
    coco["annotations"][1]["category_id"] = 9
    with pytest.raises(DataError) as caught:
        check()
    for part in ("annotation 2 of b.jpg", "unknown category 9", "listed are 1, 2"):
        assert part in sentence(caught)


def test_an_unlisted_image(check: Callable, coco: dict) -> None:
    coco["annotations"][1]["image_id"] = 5
    with pytest.raises(DataError, match="annotation 2 is of image 5, which is not listed"):
        check()


def test_classes_that_the_file_has_not(check: Callable) -> None:
    """mmdet would number the classes that are left, and train and score wrong labels."""
    with pytest.raises(DataError) as caught:
        check(classes=("person", "disc"))
    for part in ("no category for person", "disc, star", "metainfo"):
        assert part in sentence(caught)


def test_other_formats(check: Callable, coco: dict, tmp_path: Path) -> None:
    coco["annotations"][1]["id"] = 1
    with pytest.raises(DataError, match="the id 1 comes more than once in 'annotations'"):
        check()
    del coco["annotations"][1]["area"]
    with pytest.raises(DataError, match="an entry of 'annotations' has no 'area'"):
        check()
    del coco["annotations"]
    with pytest.raises(DataError, match="no list 'annotations'"):
        check()
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(DataError, match=r"cut\.json is not JSON, or is cut short"):
        check_coco(tmp_path / "cut.json", tmp_path, CLASSES)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    check_present([tmp_path / "there"], "")
    with pytest.raises(DataError, match=r"one and .*two are missing: get them"):
        check_present([tmp_path / "one", tmp_path / "there", tmp_path / "two"], "get them")


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
    assert "a.png has 3 pixels of the unknown class 37" in sentence(caught) and "0 to 10" in sentence(caught)
    # ADE20K: 0 in the file is ignored, and 1 is the first class.
    meaning = Meaning(meaning.classes, zero_is_ignored=True)
    with pytest.raises(DataError, match=r"unknown class 37: the 11 classes are 1 to 11, and 0 and 255"):
        to_labels(classes, meaning.table(), meaning, "a.png")


@pytest.mark.parametrize(
    "box", [[], None, [1, 2, 3], [1, 2, 3, float("nan")], [1, 2, float("inf"), 4], ["1", 2, 3, 4], {"x": 1}, 7]
)
def test_boxes_that_are_none(check: Callable, coco: dict, box: object) -> None:
    coco["annotations"][1]["bbox"] = box
    with pytest.raises(DataError, match=r"annotation 2 of b\.jpg has the box .*; expected \[left, top, width"):
        check()


@pytest.mark.parametrize("area", [None, float("nan"), "64"])
def test_areas_that_are_none(check: Callable, coco: dict, area: object) -> None:
    coco["annotations"][0]["area"] = area
    with pytest.raises(DataError, match=r"annotation 1 of a\.jpg .* and the area"):
        check()


def test_boxes_beyond_the_image(check: Callable, coco: dict, caplog: pytest.LogCaptureFixture) -> None:
    coco["annotations"].append({**coco["annotations"][0], "id": 3, "bbox": [40, 2, 8, 8]})
    coco["annotations"].append({**coco["annotations"][0], "id": 4, "bbox": [28, 2, 8, 8]})
    check()
    told = [record.getMessage() for record in caplog.records]
    assert "1 of 4 boxes have no area in the image and are left out (first: annotation 3" in told[0]
    assert "1 of 4 boxes reach beyond the image (first: annotation 4" in told[1]


def test_corners_in_place_of_sizes(check: Callable, coco: dict) -> None:
    for shape in coco["annotations"]:
        shape["bbox"] = [12, 12, 28, 28]
    with pytest.raises(DataError, match=r"2 of 2 boxes reach beyond .* are these \[left, top, right, bottom\]\?"):
        check()


def test_boxes_in_fractions_of_the_image(check: Callable, coco: dict) -> None:
    for shape in coco["annotations"]:
        shape["bbox"] = [0.1, 0.1, 0.3, 0.3]
    with pytest.raises(DataError, match="none of its 2 images has an object"):
        check()


@pytest.mark.parametrize("mask", [None, [], "absent"])
def test_masks_that_are_not_there(check: Callable, coco: dict, mask: object) -> None:
    for shape in coco["annotations"]:
        shape["segmentation"] = mask
        if mask == "absent":
            del shape["segmentation"]
    check()
    with pytest.raises(DataError, match=r"2 of 2 objects have no mask \('segmentation'\).*RetinaNet.*with_mask=False"):
        check(masks=True)


@pytest.mark.parametrize(
    "mask", [[[1, 2, 3]], [[1, 2, 3, 4, 5, float("nan")]], [1, 2, 3, 4, 5, 6], {"size": [32, 64], "counts": [9]}, 3]
)
def test_masks_that_cannot_be_used(check: Callable, coco: dict, mask: object) -> None:
    coco["annotations"][1]["segmentation"] = mask
    with pytest.raises(DataError, match=r"1 of 2 objects have a mask that cannot be used .*annotation 2 of b\.jpg"):
        check(masks=True)


def test_masks_as_run_lengths(check: Callable, coco: dict) -> None:
    coco["annotations"][0]["segmentation"] = {"size": [32, 32], "counts": [100, 24, 900]}
    coco["annotations"][1]["segmentation"] = {"size": [32, 32], "counts": "PPYo0"}
    check(masks=True)


def test_files_for_predictions_alone(check: Callable, coco: dict) -> None:
    del coco["annotations"]
    check(objects=False)
    with pytest.raises(DataError, match=r"no list 'annotations', as files for predictions alone.*format_only"):
        check()


def test_what_scores_ask(check: Callable, coco: dict) -> None:
    del coco["annotations"][1]["iscrowd"]
    check()
    with pytest.raises(DataError, match="an entry of 'annotations' has no 'iscrowd'"):
        check(scored=True)


def test_a_root_category_named_as_a_class(check: Callable, coco: dict) -> None:
    """A common export; the objects are in the other category of that name."""
    coco["categories"].insert(0, dict(id=0, name="disc", supercategory="none"))
    check()
    assert category_ids(coco["categories"], {1: 1, 2: 1}, CLASSES, "a") == {"disc": 1, "star": 2}
    assert list(category_ids(coco["categories"], {}, CLASSES[::-1], "a")) == ["star", "disc"]
    coco["annotations"].append({**coco["annotations"][0], "id": 3, "category_id": 0})
    with pytest.raises(DataError, match="2 categories named disc, with the ids 0, 1, all of them with objects"):
        check()


def test_an_evaluation_may_lack_classes(check: Callable, caplog: pytest.LogCaptureFixture) -> None:
    check(classes=("disc", "star", "moon"), every_class=False)
    assert "has no category for 1 of the 3 classes: moon" in caplog.text
    with pytest.raises(DataError, match="no category for moon, sun"):
        check(classes=("moon", "sun"), every_class=False)


def test_objects_of_other_categories_are_counted(check: Callable, caplog: pytest.LogCaptureFixture) -> None:
    check(classes=("disc",))
    assert "1 of 2 objects are of categories that are no classes" in caplog.text


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("images", dict(width=None), "has the size None x 32"),
        ("images", dict(height=0), "has the size 32 x 0"),
        ("images", dict(file_name=7), "the 'file_name' of an entry of 'images' is no text"),
        ("annotations", dict(image_id=[1]), "the 'image_id' of an entry of 'annotations' is no number"),
        ("categories", dict(name=None), "the 'name' of an entry of 'categories' is no text"),
    ],
)
def test_entries_of_other_kinds(check: Callable, coco: dict, part: str, change: dict, told: str) -> None:
    coco[part][0].update(change)
    with pytest.raises(DataError, match=told):
        check()
    coco[part][0] = "text"
    with pytest.raises(DataError, match=f"an entry of '{part}' is no object: text"):
        check()


def save_turned(file: Path, orientation: int, size: tuple[int, int] = (32, 48)) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(file, exif=exif)


def test_images_of_another_size(check: Callable, tmp_path: Path) -> None:
    Image.new("RGB", (32, 16)).save(tmp_path / "train/b.jpg")
    with pytest.raises(DataError, match=r"b\.jpg is 32 x 16 pixels, and .*train\.json lists 32 x 32"):
        check()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_on_the_pixels_as_stored(check: Callable, coco: dict, tmp_path: Path, orientation: int) -> None:
    save_turned(tmp_path / "train/b.jpg", orientation)
    coco["images"][1].update(width=32, height=48)
    check(upright=False)
    if orientation > 4:
        with pytest.raises(DataError, match=f"EXIF orientation {orientation}.*color_type='color_ignore_orientation'"):
            check()
        coco["images"][1].update(width=48, height=32)
    check()
    if orientation > 4:
        with pytest.raises(DataError, match="set color_type='color' in LoadImageFromFile"):
            check(upright=False)


def test_turns_that_sizes_do_not_tell(check: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_turned(tmp_path / "train/b.jpg", 6, (32, 32))
    check()
    assert "1 of 2 images" in caplog.text and "EXIF orientation" in caplog.text and "b.jpg" in caplog.text


def test_images_that_cannot_be_read(check: Callable, tmp_path: Path) -> None:
    file = tmp_path / "train/b.jpg"
    Image.effect_noise((32, 32), 50).convert("RGB").save(file)
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"b\.jpg cannot be read as an image: .*truncated"):
        check()


def test_names_of_images_may_be_written_in_other_ways(check: Callable, coco: dict, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "train/b.jpg").rename(tmp_path / "elsewhere/b.jpg")
    (tmp_path / "train/linked").symlink_to(tmp_path / "elsewhere")
    coco["images"][0]["file_name"] = "./a.jpg"
    coco["images"][1]["file_name"] = "linked//b.jpg"
    check()


def test_images_that_are_not_listed_are_counted(
    check: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "c.webp")
    with caplog.at_level(logging.INFO, logger="vssm"):
        check()
    assert "1 files in" in caplog.text and "c.webp" in caplog.text


# Class maps


@pytest.fixture
def maps(tmp_path: Path) -> Callable[..., None]:
    """Check a set of segmentation whose class maps have some values each."""

    def call(*values: object, classes: tuple[str, ...] = ("ground", "road"), is_training: bool = True, **use) -> None:
        for folder in ("images", "maps"):
            (tmp_path / folder).mkdir(exist_ok=True)
        for number, each in enumerate(values):
            image = each if isinstance(each, Image.Image) else Image.fromarray(np.array(each, np.uint8).reshape(1, -1))
            image.save(tmp_path / f"maps/{number}.png")
            if not (tmp_path / f"images/{number}.jpg").exists():
                Image.new("RGB", image.size).save(tmp_path / f"images/{number}.jpg")
        pairs = check_class_maps(tmp_path / "images", tmp_path / "maps", ".jpg", ".png")
        check_contents(pairs, Meaning(classes, **use), is_training=is_training)

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


def test_a_rare_class_is_looked_for_in_all_maps(
    maps: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vssm.data.class_maps.COUNTED", 2)
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
    save_turned(tmp_path / "images/0.jpg", 6, (2, 1))
    with pytest.raises(DataError, match="EXIF orientation 6; set color_type='color_ignore_orientation'"):
        maps([0, 1])


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
    assert "1 files in" in caplog.text and "e.png" in caplog.text
    with pytest.raises(DataError, match=r"no images \*\.bmp in .*; it has a\.jpg, b\.JPEG"):
        check_class_maps(tmp_path / "images", tmp_path / "maps", ".bmp", ".png")


@pytest.mark.parametrize("learnt", [("b", "a"), ("b",), ("a", "b", "c")])
def test_classes_of_maps_go_by_name(learnt: tuple[str, ...]) -> None:
    table = Meaning(learnt, file_classes=("a", "b")).table()
    assert [learnt[label] if label < 3 else None for label in table[[0, 1]]] == [
        name if name in learnt else None for name in ("a", "b")
    ]
