"""The checks of detection and segmentation data, for data sets of configs."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from vssm.data import DataError, ensure_shapes
from vssm.data.layouts import ADE20K, COCO
from vssm.mm.tasks.data_check import Use, prepare_dataset

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from vssm.mm.tasks.reading import read_by_our_rules


@pytest.fixture
def scope(request: pytest.FixtureRequest) -> Iterator[None]:
    """The scope that a config's default_scope sets."""
    with DefaultScope.overwrite_default_scope(request.param):
        yield


def within(scope: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scope", [scope], indirect=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


def coco(root: str, **options: object) -> dict:
    prefix = dict(img="train2017/")
    return dict(
        type="CocoDataset",
        data_root=root,
        ann_file="annotations/instances_train2017.json",
        data_prefix=prefix,
        pipeline=[],
        **options,
    )


@within("mmdet")
@pytest.mark.usefixtures("scope")
def test_missing_coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = coco("data/coco/")
    # mmengine notes beside `type` the package whose base a part comes from.
    inherited = {**config, "_scope_": "mmdet"}
    for wrapped in (config, dict(type="RepeatDataset", times=2, dataset=inherited)):
        with pytest.raises(DataError) as caught:
            prepare_dataset(wrapped)
        for part in ("data/coco/annotations/instances_train2017.json", "data/coco/train2017", "cocodataset.org"):
            assert part in str(caught.value)
    (tmp_path / "data/coco/train2017").mkdir(parents=True)
    with pytest.raises(DataError, match=r"instances_train2017\.json is missing"):
        prepare_dataset(config)


@within("mmseg")
@pytest.mark.usefixtures("scope")
def test_missing_ade20k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prefix = dict(img_path="images/training", seg_map_path="annotations/training")
    config = dict(type="ADE20KDataset", data_root="data/ade/ADEChallengeData2016", data_prefix=prefix, pipeline=[])
    with pytest.raises(DataError) as caught:
        prepare_dataset(dict(type="ConcatDataset", datasets=[config, config]))
    for part in ("ADEChallengeData2016/images/training", "ADEChallengeData2016.zip", "data/ade"):
        assert part in str(caught.value)


@within("mmdet")
@pytest.mark.usefixtures("scope")
def test_coco_of_other_classes(root: Path) -> None:
    folder = ensure_shapes(root, train=10, val=10, image_size=32, layout=COCO)
    config = dict(type="CocoDataset", data_root=str(folder), ann_file="annotations/instances_val.json")
    config |= dict(data_prefix=dict(img="val/"), pipeline=[])
    with pytest.raises(DataError, match=r"has no category for person, bicycle.*it has arrow"):
        prepare_dataset(config)
    prepare_dataset(config | dict(metainfo=dict(classes=("star", "disc"))))


@within("mmdet")
@pytest.mark.usefixtures("scope")
def test_an_annotation_file_of_missing_images(tmp_path: Path) -> None:
    (tmp_path / "train2017").mkdir()
    (tmp_path / "annotations").mkdir()
    content = dict(
        images=[dict(id=1, file_name="a.jpg", height=32, width=32)],
        annotations=[dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 5, 5], area=25)],
        categories=[dict(id=1, name="person")],
    )
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"1 of 1 images .* are not in .*train2017: a\.jpg"):
        prepare_dataset(coco(str(tmp_path), metainfo=dict(classes=("person",))))


@within("mmseg")
@pytest.mark.usefixtures("scope")
def test_sets_that_number_the_same_values_differently_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = ensure_shapes(tmp_path, train=10, val=10, image_size=32, layout=ADE20K)
    config = dict(type="BaseSegDataset", data_root=str(folder), data_prefix=dict(img_path="images/validation"))
    for learnt, told in ((None, 0), (False, 0), (True, 1)):
        prepare_dataset({**config, "pipeline": []}, Use(is_training=False, reduced=learnt))
        assert caplog.text.count("reduce_zero_label is False, and True in the training set") == told


@within("mmseg")
@pytest.mark.usefixtures("scope")
def test_a_class_map_with_an_unknown_value(tmp_path: Path) -> None:
    folder = ensure_shapes(tmp_path, train=10, val=10, image_size=32, layout=ADE20K)
    for reduce_zero_label, told in (
        (False, "unknown class 37: the 11 classes are 0 to 10"),
        (True, "37: the 10 .* 1 to 10"),
    ):
        dataset = DATASETS.build(
            dict(
                type="ShapesSegmentationDataset",
                root=str(tmp_path),
                split="train",
                train=10,
                val=10,
                image_size=32,
                reduce_zero_label=reduce_zero_label,
                pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")],
            )
        )
        read_by_our_rules(dataset)
        good = dataset[0]["gt_seg_map"]
        assert good.shape == (32, 32) and len(np.unique(good)) > 1
        file = folder / "annotations/training/000003.png"
        classes = np.array(Image.open(file))
        classes[4, 4] = 37
        Image.fromarray(classes).save(file)
        with pytest.raises(DataError, match=told) as caught:
            dataset[3]
        assert "000003.png has 1 pixels" in str(caught.value)


@within("mmseg")
@pytest.mark.usefixtures("scope")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lists_of_images_and_names_in_files(tmp_path: Path, encoding: str) -> None:
    """A byte order mark is no part of the first name; images are found with their ending, without, or with another."""
    images = {"a.jpg": "a", "b.JPEG": "b", "sub/c.jpg": "sub/c.jpg"}
    for name in images:
        for folder, file in (("images", name), ("maps", f"{Path(name).with_suffix('.png')}")):
            (tmp_path / folder / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / folder / file)
    (tmp_path / "list.txt").write_text("\r\n".join(reversed(images.values())) + "\n\n", encoding=encoding)
    (tmp_path / "names.txt").write_text("road\ntree\n\n", encoding=encoding)
    prefix = dict(img_path="images", seg_map_path="maps")
    config = dict(type="BaseSegDataset", data_root=str(tmp_path), ann_file="list.txt", data_prefix=prefix, pipeline=[])
    dataset = DATASETS.build(prepare_dataset(config | dict(metainfo=dict(classes=str(tmp_path / "names.txt")))))
    found = [dataset.get_data_info(place) for place in range(len(dataset))]
    assert [info["img_path"] for info in found] == [str(tmp_path / "images" / name) for name in reversed(images)]
    assert [Path(info["seg_map_path"]).name for info in found] == ["c.png", "b.png", "a.png"]
    assert dataset.metainfo["classes"] == ("road", "tree")


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        ("cell", r"metainfo\.classes is 'cell', and there is no such file of names; .*one class is \('cell',\)"),
        (("ground", "road", "road"), "the classes have the name road more than once"),
    ],
)
@pytest.mark.parametrize("package", ["mmdet", "mmseg"])
def test_names_of_classes_that_are_none(package: str, classes: object, told: str) -> None:
    """mmengine takes the letters of a text for classes; a name that comes twice had one label for both."""
    kind = {"mmdet": "CocoDataset", "mmseg": "BaseSegDataset"}[package]
    with DefaultScope.overwrite_default_scope(package), pytest.raises(DataError, match=told):
        prepare_dataset(dict(type=kind, metainfo=dict(classes=classes), pipeline=[]))


@pytest.mark.parametrize("scope", ["mmengine", "mmdet", "mmseg"], indirect=True)
@pytest.mark.usefixtures("scope")
def test_other_data_are_let_through() -> None:
    prepare_dataset(dict(type="ShapesDetectionDataset", root="nowhere", split="train"))
    prepare_dataset(dict(type="ImageDataset", root="nowhere"))


@pytest.mark.parametrize("wrapper", ["ConcatDataset", "RepeatDataset", "ClassBalancedDataset"])
def test_wrappers_do_not_take_data_sets_of_classification(wrapper: str) -> None:
    """mmengine's need data sets of their own base."""
    one = dict(type="ImageDataset", root="a")
    inner = dict(datasets=[one, one]) if wrapper == "ConcatDataset" else dict(dataset=one)
    with pytest.raises(DataError, match=f"{wrapper} is for data sets of mmdet and mmseg"):
        prepare_dataset(dict(type=wrapper, **inner))
