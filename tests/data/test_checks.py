"""Bad data of detection and segmentation: one sentence each, before training."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vssm.data import DataError
from vssm.data.checks import check_present
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
    """Check the current content of `coco`."""

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
    """mmdet numbers the remaining classes, and would train and score wrong labels."""
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


@pytest.mark.parametrize(
    "box", [[], None, [1, 2, 3], [1, 2, 3, float("nan")], [1, 2, 1e300, 4], ["1", 2, 3, 4], {"x": 1}, 7]
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


def test_boxes_or_masks_in_fractions_of_the_image(check: Callable, coco: dict) -> None:
    for shape in coco["annotations"]:
        shape["segmentation"] = [[0.1, 0.1, 0.4, 0.1, 0.4, 0.4]]
    with pytest.raises(DataError, match="2 of 2 objects have a mask elsewhere than their box"):
        check(masks=True)
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
    with pytest.raises(DataError, match=r"2 of 2 objects have no mask .*RetinaNet.*with_mask=False"):
        check(masks=True)


@pytest.mark.parametrize(
    "mask",
    [
        [[1, 2, 3, 4, 5, float("nan")]],
        [["1", 2, 3, 4, 5, 6]],
        [1, 2, 3, 4, 5, 6],
        {"size": [32, 64], "counts": [9]},
        3,
        *(
            {"size": [32, 32], "counts": counts}
            for counts in ([66, 8, 24], [66, -8, 966], [66, 957.5, 0.5], "abc", None)
        ),
    ],
)
def test_masks_that_cannot_be_used(check: Callable, coco: dict, mask: object) -> None:
    coco["annotations"][1]["segmentation"] = mask
    with pytest.raises(DataError, match=r"1 of 2 objects have a mask that cannot be used .*annotation 2 of b\.jpg"):
        check(masks=True)


def test_masks_of_two_points(check: Callable, coco: dict, caplog: pytest.LogCaptureFixture) -> None:
    """mmdet leaves them out."""
    coco["annotations"][1]["segmentation"] = [[1, 2, 3, 4]]
    check(masks=True)
    assert "1 of 2 objects have a mask of fewer than three points, and are left out" in caplog.text
    coco["annotations"][0]["segmentation"] = [[1, 2, 3]]
    with pytest.raises(DataError, match="2 of 2 objects have a mask that cannot be used"):
        check(masks=True)


def test_masks_as_run_lengths(check: Callable, coco: dict) -> None:
    coco["annotations"][0]["segmentation"] = {"size": [32, 32], "counts": [100, 24, 900]}
    coco["annotations"][1]["segmentation"] = {"size": [32, 32], "counts": "T3h0Tl0"}
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


def test_ids_that_scores_cannot_sort(check: Callable, coco: dict) -> None:
    coco["categories"][1]["id"] = coco["annotations"][1]["category_id"] = "two"
    check()
    with pytest.raises(DataError, match="some ids in 'categories' are numbers and others texts"):
        check(scored=True)


def test_crowds_and_what_is_marked_count_nowhere(check: Callable, coco: dict, caplog: pytest.LogCaptureFixture) -> None:
    coco["annotations"][0]["iscrowd"] = 1
    check()
    assert "1 of 2 objects are crowds (iscrowd 1), in neither loss nor score" in caplog.text
    coco["annotations"][1]["ignore"] = 1
    with pytest.raises(DataError, match=r"1 of 1 objects are crowds.*set iscrowd to 0"):
        check()
    coco["annotations"][0]["iscrowd"] = None  # as good as 0
    check()
    assert "1 of 2 boxes are marked 'ignore': training leaves them out, and scores count them" in caplog.text


def test_an_image_listed_twice(check: Callable, coco: dict, caplog: pytest.LogCaptureFixture) -> None:
    coco["images"].append({**coco["images"][0], "id": 3, "file_name": "./a.jpg"})
    check()
    assert "lists 1 of 2 images more than once" in caplog.text


def test_a_byte_order_mark(check: Callable, coco: dict, tmp_path: Path) -> None:
    check()
    file = tmp_path / "train.json"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    with pytest.raises(DataError, match=r"train\.json begins with a byte order mark; save it as UTF-8 without one"):
        check_coco(file, tmp_path / "train", CLASSES)


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
        ("annotations", dict(image_id=[1]), "the 'image_id' of an entry of 'annotations' is no whole number or text"),
        ("annotations", dict(image_id="1"), "annotation 1 is of image '1', which is not listed"),
        ("annotations", dict(iscrowd="0"), "annotation 1 has iscrowd '0'; expected 0 or 1"),
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


def test_small_images_are_told(check: Callable, coco: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """mmdet leaves them out without a word, and fails where none is left."""
    coco["images"][0]["width"] = 31
    Image.new("RGB", (31, 32)).save(tmp_path / "train/a.jpg")
    check(min_side=32)
    assert "1 of 2 images have a side below 32 pixels (filter_cfg.min_size) and are left out" in caplog.text
    coco["annotations"].pop()  # of the large one
    with pytest.raises(DataError, match="none of its 2 images has an object of the classes and a side of 32 pixels"):
        check(min_side=32, empty_left_out=True)
