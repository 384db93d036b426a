"""Bad data of detection and segmentation: one sentence each, before training."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vssm.data import DataError
from vssm.data.checks import check_class_maps, check_classes_of_map, check_coco, check_present

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

    def call(classes: tuple[str, ...] = CLASSES, empty_left_out: bool = False) -> None:
        file = tmp_path / "train.json"
        file.write_text(json.dumps(coco))
        check_coco(file, tmp_path / "train", classes, empty_left_out)

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
    check_classes_of_map(classes, 11, 255, "a.png")
    classes[1, :3] = 37
    with pytest.raises(DataError) as caught:
        check_classes_of_map(classes, 11, 255, "a.png")
    assert "a.png has 3 pixels of the unknown class 37" in sentence(caught) and "0 to 10" in sentence(caught)
    # ADE20K: 0 in the file is ignored, and 1 is the first class.
    with pytest.raises(DataError, match=r"unknown class 38: the 11 classes are 1 to 11, and 0 and 255"):
        check_classes_of_map(classes, 11, 255, "a.png", first=1)
