"""The embedded set as COCO and as ADE20K: the same scenes as for classification, with annotations that fit them."""

import json
import logging
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vssm.data import KINDS, ensure_shapes
from vssm.data.layouts import ADE20K, COCO, IMAGE_FOLDER, Layout
from vssm.data.scene import Scene, draw_scene

SMALL = dict(train=30, val=10, image_size=48, seed=3)
LAYOUTS = pytest.mark.parametrize("layout", [COCO, ADE20K], ids=lambda layout: layout.name)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def coco(root: Path) -> Path:
    return ensure_shapes(root, **SMALL, layout=COCO)


@pytest.fixture(scope="module")
def ade20k(root: Path) -> Path:
    return ensure_shapes(root, **SMALL, layout=ADE20K)


def files(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def read(folder: Path, split: str) -> dict:
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


def scene_of(split: str, index: int) -> Scene:
    random = np.random.default_rng([SMALL["seed"], ("train", "val").index(split), index])
    return draw_scene(random, index % len(KINDS), SMALL["image_size"])


def test_coco_files(coco: Path) -> None:
    for split, count in (("train", 30), ("val", 10)):
        listed = read(coco, split)
        assert [category["name"] for category in listed["categories"]] == list(KINDS)
        names = [image["file_name"] for image in listed["images"]]
        assert sorted(names) == sorted(file.name for file in (coco / split).iterdir())
        assert len(set(names)) == count
        assert {(image["height"], image["width"]) for image in listed["images"]} == {(48, 48)}
        ids = [annotation["id"] for annotation in listed["annotations"]]
        assert len(set(ids)) == len(ids)
    assert {path.name for path in coco.iterdir()} == {"train", "val", "annotations", "parameters.json"}


def test_coco_shapes_are_those_of_the_scene(coco: Path) -> None:
    listed = read(coco, "train")
    shapes = {image["id"]: [] for image in listed["images"]}
    for shape in listed["annotations"]:
        shapes[shape["image_id"]].append(shape)
    for image in listed["images"]:
        scene = scene_of("train", int(Path(image["file_name"]).stem))
        assert [shape["category_id"] for shape in shapes[image["id"]]] == [each.kind + 1 for each in scene.instances]
        for shape, instance in zip(shapes[image["id"]], scene.instances, strict=True):
            mask = decode(shape["segmentation"])
            assert np.array_equal(mask, instance.visible)
            rows, columns = np.nonzero(mask)
            left, top, width, height = shape["bbox"]
            assert (columns.min(), rows.min()) == (left, top)
            assert (columns.max() + 1, rows.max() + 1) == (left + width, top + height)
            assert mask.sum() == shape["area"] > 0
    assert len(listed["annotations"]) > 2 * len(listed["images"]), "several shapes a scene"


def decode(segmentation: dict) -> np.ndarray:
    """The mask of COCO's uncompressed run lengths, read the plain way."""
    height, width = segmentation["size"]
    values = [position % 2 == 1 for position, length in enumerate(segmentation["counts"]) for _ in range(length)]
    return np.array(values).reshape(width, height).T


def test_run_lengths_are_read_by_pycocotools(coco: Path) -> None:
    mask_api = pytest.importorskip("pycocotools.mask")
    for annotation in read(coco, "val")["annotations"]:
        segmentation = annotation["segmentation"]
        encoded = mask_api.frPyObjects(segmentation, *segmentation["size"])
        assert np.array_equal(mask_api.decode(encoded).astype(bool), decode(segmentation))


def test_ade20k_files_and_class_maps(ade20k: Path) -> None:
    for split, part, count in (("train", "training", 30), ("val", "validation", 10)):
        images = sorted((ade20k / "images" / part).iterdir())
        maps = sorted((ade20k / "annotations" / part).iterdir())
        assert [file.name for file in images] == [f"{index:06d}.jpg" for index in range(count)]
        assert [file.name for file in maps] == [f"{index:06d}.png" for index in range(count)]
        for index, file in enumerate(maps):
            with Image.open(file) as image:
                assert image.mode == "L"
                assert np.array_equal(np.asarray(image), scene_of(split, index).class_map())


def test_images_are_those_of_classification(root: Path, coco: Path, ade20k: Path) -> None:
    plain = {file.stem: file for file in ensure_shapes(root, **SMALL, layout=IMAGE_FOLDER).glob("val/*/*")}
    for file in (coco / "val").iterdir():
        assert file.suffix == plain[file.stem].suffix
        assert file.read_bytes() == plain[file.stem].read_bytes()
    for file in (ade20k / "images/validation").iterdir():
        difference = np.asarray(Image.open(file), float) - np.asarray(Image.open(plain[file.stem]), float)
        assert np.abs(difference).mean() < 12, "only JPEG's losses lie between them"


@LAYOUTS
def test_same_seed_same_bytes_other_seed_other_bytes(
    root: Path, tmp_path: Path, layout: Layout, coco: Path, ade20k: Path
) -> None:
    first = files({COCO.name: coco, ADE20K.name: ade20k}[layout.name])
    assert files(ensure_shapes(tmp_path, **SMALL, layout=layout)) == first
    other = files(ensure_shapes(tmp_path, **{**SMALL, "seed": 4}, layout=layout))
    assert not set(first.values()) & set(other.values())


@LAYOUTS
def test_an_interrupted_drawing_leaves_nothing(tmp_path: Path, layout: Layout) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 35:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_shapes(tmp_path, **SMALL, layout=layout, progress=interrupt)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_progress_is_logged_where_there_is_no_terminal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vssm.data.shapes"):
        ensure_shapes(tmp_path, **SMALL, layout=COCO)
    assert [record.getMessage() for record in caplog.records][-1].endswith("40 of 40 images")
    assert len(caplog.records) == 10
