"""mmdet's and mmseg's pipelines read as vssm.data does, and labels of all data sets go by the training's classes."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from vssm.data import BadImageError, DataError, read_rgb
from vssm.mm.tasks.data_check import Use, prepare_dataset

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmdet.evaluation import CocoMetric

from vssm.mm.tasks.reading import ClassMapLoader, RgbLoader, read_by_our_rules
from vssm.mm.tasks.runner import score_by_name


@pytest.fixture
def mmdet() -> Iterator[None]:
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


@pytest.fixture
def mmseg() -> Iterator[None]:
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


def build(config: dict, **use: object) -> BaseDataset:
    """As the runner builds a data set."""
    dataset = DATASETS.build(prepare_dataset(config, Use(**use)))
    dataset.full_init()
    read_by_our_rules(dataset)
    return dataset


def coco(root: Path, categories: list[tuple[int, str]], size: tuple[int, int] = (24, 16), **options: object) -> dict:
    """A data set of one image with an object of each category from the left to the right; id 0 has none."""
    root.mkdir(exist_ok=True)
    if not (root / "a.jpg").exists():
        Image.new("RGB", size).save(root / "a.jpg")
    mask = [[0, 0, 4, 0, 4, 4]]
    shapes = [
        dict(id=key, image_id=1, category_id=key, bbox=[key, 0, 4, 4], area=16, iscrowd=0, segmentation=mask)
        for key, _ in categories
        if key
    ]
    content = dict(
        images=[dict(id=1, file_name="a.jpg", width=size[0], height=size[1])],
        annotations=shapes,
        categories=[dict(id=key, name=name) for key, name in categories],
    )
    (root / "a.json").write_text(json.dumps(content))
    pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True)]
    return dict(
        type="CocoDataset",
        data_root=str(root),
        ann_file="a.json",
        data_prefix=dict(img=""),
        serialize_data=False,  # it ends in a garbage collection of half a second
        pipeline=pipeline,
        **options,
    )


def objects(dataset: BaseDataset) -> dict[str, int]:
    """The class and the left edge of each object."""
    classes = dataset.metainfo["classes"]
    return {classes[each["bbox_label"]]: each["bbox"][0] for each in dataset.get_data_info(0)["instances"]}


NAMES = ("ant", "bee", "cat")


@pytest.mark.usefixtures("mmdet")
@pytest.mark.parametrize("categories", [[(1, "ant"), (2, "bee"), (3, "cat")], [(3, "cat"), (1, "ant"), (2, "bee")]])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_categories_are_found_by_name(tmp_path: Path, categories: list, order: tuple[int, ...]) -> None:
    """mmdet numbers classes by the order in the file, and names predictions by the order in the config."""
    classes = tuple(NAMES[place] for place in order)
    dataset = build(coco(tmp_path, categories, metainfo=dict(classes=classes)))
    assert objects(dataset) == {"ant": 1, "bee": 2, "cat": 3}
    wrapped = dict(type="RepeatDataset", times=2, dataset=coco(tmp_path, categories, metainfo=dict(classes=classes)))
    assert objects(build(wrapped).dataset) == objects(dataset)


@pytest.mark.usefixtures("mmdet")
def test_joined_files_have_the_order_of_the_first(tmp_path: Path) -> None:
    one = coco(tmp_path / "one", [(1, "ant"), (2, "bee")], metainfo=dict(classes=("ant", "bee")))
    (tmp_path / "names.txt").write_text("bee\nant\n")
    other = coco(tmp_path / "two", [(1, "bee"), (2, "ant")], metainfo=dict(classes=str(tmp_path / "names.txt")))
    joined = build(dict(type="ConcatDataset", datasets=[one, other]))
    assert [objects(part) for part in joined.datasets] == [{"ant": 1, "bee": 2}, {"bee": 1, "ant": 2}]
    assert [part.metainfo["classes"] for part in joined.datasets] == [("ant", "bee")] * 2


@pytest.mark.usefixtures("mmdet")
def test_data_sets_go_to_workers_that_are_not_forked(tmp_path: Path) -> None:
    dataset = build(coco(tmp_path, [(2, "bee"), (1, "ant")], metainfo=dict(classes=("ant", "bee"))))
    copy = pickle.loads(pickle.dumps(dataset))
    assert objects(copy) == objects(dataset) and np.array_equal(copy[0]["img"], dataset[0]["img"])


@pytest.mark.usefixtures("mmdet")
def test_a_root_category_named_as_a_class(tmp_path: Path) -> None:
    """It took label 0, so that the objects had a label beyond the last class."""
    config = coco(tmp_path, [(0, "cell"), (1, "cell")], metainfo=dict(classes=("cell",)))
    assert objects(build(config)) == {"cell": 1}
    config = coco(tmp_path, [(0, "ant"), (1, "ant"), (2, "bee")], metainfo=dict(classes=("bee", "ant")))
    assert objects(build(config)) == {"bee": 2, "ant": 1}


@pytest.mark.usefixtures("mmdet")
@pytest.mark.parametrize("own", [None, ("cat", "bee", "ant"), ("cat", "bee")])
def test_evaluation_has_the_classes_of_training(tmp_path: Path, own: tuple | None) -> None:
    options = {} if own is None else dict(metainfo=dict(classes=own, palette=[(i, i, i) for i in range(len(own))]))
    config = coco(tmp_path, [(1, "cat"), (2, "bee")], test_mode=True, **options)
    dataset = build(config, is_training=False, classes=NAMES, scored=True)
    assert dataset.metainfo["classes"] == NAMES and objects(dataset) == {"cat": 1, "bee": 2}
    metric = CocoMetric(ann_file=str(tmp_path / "a.json"), metric="bbox")
    metric.dataset_meta = dataset.metainfo
    score_by_name(metric, dataset, "val_evaluator.ann_file")
    assert metric.cat_ids[1:] == [2, 1] and metric.cat_ids[0] not in (1, 2)
    found = dict(
        img_id=1,
        ori_shape=(16, 24),
        pred_instances=dict(
            bboxes=np.array([[1.0, 0, 5, 4], [2, 0, 6, 4]]), scores=np.array([0.9, 0.8]), labels=np.array([2, 1])
        ),
    )
    found["pred_instances"] = {name: _Tensor(value) for name, value in found["pred_instances"].items()}
    metric.process({}, [found])
    assert metric.evaluate(1)["coco/bbox_mAP"] == pytest.approx(1.0)


class _Tensor:
    """What CocoMetric asks of a prediction."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def cpu(self) -> "_Tensor":
        return self

    def numpy(self) -> np.ndarray:
        return self.value


@pytest.mark.usefixtures("mmdet")
def test_other_classes_than_the_trainings_are_named(tmp_path: Path) -> None:
    config = coco(tmp_path, [(1, "cat"), (2, "dog")], metainfo=dict(classes=("cat", "dog")))
    with pytest.raises(DataError, match=r"has 1 classes that are none of the training's: dog; those are ant, bee, cat"):
        build(config, is_training=False, classes=NAMES)


@pytest.mark.usefixtures("mmdet")
def test_a_metric_of_other_images(tmp_path: Path) -> None:
    dataset = build(coco(tmp_path / "a", [(1, "ant")], metainfo=dict(classes=("ant",))))
    coco(tmp_path / "b", [(1, "ant")])
    other = tmp_path / "b/a.json"
    other.write_text(
        other.read_text()
        .replace('"id": 1, "file_name"', '"id": 9, "file_name"')
        .replace('image_id": 1', 'image_id": 9')
    )
    metric = CocoMetric(ann_file=str(other), metric="bbox")
    with pytest.raises(DataError, match=r"test_evaluator\.ann_file has no image with the id 1"):
        score_by_name(metric, dataset, "test_evaluator.ann_file")


@pytest.mark.usefixtures("mmdet")
def test_masks_are_asked_for_where_they_are_used(tmp_path: Path) -> None:
    config = coco(tmp_path, [(1, "ant")], metainfo=dict(classes=("ant",)))
    file = tmp_path / "a.json"
    file.write_text(file.read_text().replace("segmentation", "nothing"))
    build(config)
    with pytest.raises(DataError, match="1 of 1 objects have no mask"):
        build(config, is_training=False, scored=True, masks=True)
    config["pipeline"][1]["with_mask"] = True
    with pytest.raises(DataError, match="1 of 1 objects have no mask"):
        build(config)
    build(config, is_training=False)  # predictions alone


def stored(file: Path, orientation: int, mode: str = "RGB") -> None:
    """An image of 24 x 16 pixels as they are stored."""
    pixels = np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)[:16, :24]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).convert(mode).save(file, exif=exif)


@pytest.mark.usefixtures("mmdet")
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1"])
@pytest.mark.parametrize("orientation", [1, 2, 6])
def test_training_reads_as_prediction_does(tmp_path: Path, orientation: int, mode: str) -> None:
    size = (16, 24) if orientation > 4 else (24, 16)
    config = coco(tmp_path, [(1, "ant")], size, metainfo=dict(classes=("ant",)))
    stored(tmp_path / "a.png", orientation, mode)
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text().replace("a.jpg", "a.png"))
    results = build(config)[0]
    assert np.array_equal(results["img"][..., ::-1], np.asarray(read_rgb(str(tmp_path / "a.png"), "a")))
    assert results["ori_shape"] == size[::-1]


@pytest.mark.usefixtures("mmdet")
def test_sixteen_bits_and_cmyk(tmp_path: Path) -> None:
    config = coco(tmp_path, [(1, "ant")], metainfo=dict(classes=("ant",)))
    deep = np.random.default_rng(0).integers(0, 65535, (16, 24), dtype=np.uint16)
    for name, image in (("a.png", Image.fromarray(deep)), ("b.jpg", Image.new("CMYK", (24, 16), (10, 200, 30, 40)))):
        image.save(tmp_path / name)
        text = (tmp_path / "a.json").read_text()
        (tmp_path / "a.json").write_text(text.replace("a.jpg", name).replace("a.png", name))
        pixels = build(config)[0]["img"][..., ::-1]
        assert np.array_equal(pixels, np.asarray(read_rgb(str(tmp_path / name), name)))


@pytest.mark.usefixtures("mmdet")
def test_an_image_is_compared_with_its_annotations_when_it_is_read(tmp_path: Path) -> None:
    dataset = build(coco(tmp_path, [(1, "ant")], metainfo=dict(classes=("ant",))))
    stored(tmp_path / "a.jpg", 6)
    with pytest.raises(DataError, match=r"a\.jpg is 16 x 24 .*for 24 x 16: it is turned by its EXIF orientation 6"):
        dataset[0]
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-400])
    with pytest.raises(BadImageError, match=r"a\.jpg cannot be read as an image"):
        dataset[0]
    config = coco(tmp_path, [(1, "ant")], metainfo=dict(classes=("ant",)))
    config["pipeline"][0]["color_type"] = "color_ignore_orientation"
    stored(tmp_path / "a.jpg", 6)
    assert build(config)[0]["img"].shape == (16, 24, 3)


def ade(root: Path, values: list[list[int]], **options: object) -> dict:
    for folder in ("images", "maps"):
        (root / folder).mkdir(exist_ok=True)
    for number, each in enumerate(values):
        Image.new("RGB", (len(each), 1)).save(root / f"images/{number}.jpg")
        Image.fromarray(np.array([each], np.uint8)).save(root / f"maps/{number}.png")
    load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")]
    prefix = dict(img_path="images", seg_map_path="maps")
    where = dict(data_root=str(root), data_prefix=prefix, serialize_data=False)
    return dict(type="BaseSegDataset", pipeline=load, **where, **options)


@pytest.mark.usefixtures("mmseg")
@pytest.mark.parametrize(
    ("own", "extra", "values", "labels"),
    [
        (("a", "b"), {}, [0, 1, 255], [0, 1, 255]),
        (("b", "a"), {}, [0, 1, 255], [1, 0, 255]),
        (("c", "b", "a"), {}, [0, 1, 2], [255, 1, 0]),
        (("a", "b"), dict(pixel_values=(0, 255)), [0, 255, 0], [0, 1, 0]),
        (("b", "a"), dict(pixel_values=(0, 255)), [0, 255, 0], [1, 0, 1]),
    ],
)
def test_class_maps_go_by_name(tmp_path: Path, own: tuple, extra: dict, values: list, labels: list) -> None:
    """The training's classes are a and b, whatever their order and number in the config of another set."""
    config = ade(tmp_path, [values], metainfo=dict(classes=own, palette=[[i, i, i] for i in range(len(own))], **extra))
    if len(own) > 2:
        with pytest.raises(DataError, match="none of the training's: c"):
            build(config, is_training=False, classes=("a", "b"), scored=True)
        return
    dataset = build(config, is_training=False, classes=("a", "b"), scored=True)
    assert dataset[0]["gt_seg_map"].tolist() == [labels] and dataset.metainfo["classes"] == ("a", "b")
    assert [list(colour) for colour in dataset.metainfo["palette"]] == [[own.index(n)] * 3 for n in ("a", "b")]


@pytest.mark.usefixtures("mmseg")
def test_reading_equals_mmseg_where_that_is_right(tmp_path: Path) -> None:
    """With a reduced zero label and a subset of the classes of ADE20K."""
    classes = ("wall", "sky")
    config = ade(tmp_path, [[0, 1, 2, 3, 255]], metainfo=dict(classes=classes), reduce_zero_label=True)
    config |= dict(type="ADE20KDataset", img_suffix=".jpg")
    theirs = DATASETS.build(config)[0]["gt_seg_map"]
    assert build(config)[0]["gt_seg_map"].ravel().tolist() == theirs.tolist() == [255, 0, 255, 1, 255]


@pytest.mark.usefixtures("mmseg")
def test_a_step_does_not_reduce_labels_that_its_data_set_keeps(tmp_path: Path) -> None:
    config = ade(tmp_path, [[0, 1]], metainfo=dict(classes=("a", "b")))
    config["pipeline"][1]["reduce_zero_label"] = True
    with pytest.raises(DataError, match="reduce_zero_label is True in LoadAnnotations and False in the data set"):
        build(config)


@pytest.mark.usefixtures("mmseg")
@pytest.mark.parametrize("own", [None, ("sky", "wall"), ("wall", "sky"), ("sky",)])
def test_known_sets_keep_the_numbers_of_their_files(tmp_path: Path, own: tuple | None) -> None:
    config = ade(tmp_path, [[0, 1, 2, 3, 255]], reduce_zero_label=True, test_mode=True)
    config |= dict(type="ADE20KDataset", img_suffix=".jpg", **({} if own is None else dict(metainfo=dict(classes=own))))
    dataset = build(config, is_training=False, classes=("sky", "wall"), scored=True)
    assert dataset[0]["gt_seg_map"].tolist() == [[255, 1, 255, 0, 255]]
    assert dataset.metainfo["palette"] == [[6, 230, 230], [120, 120, 120]]


@pytest.mark.usefixtures("mmseg")
def test_steps_inside_other_steps_are_replaced(tmp_path: Path) -> None:
    config = ade(tmp_path, [[0, 1]], metainfo=dict(classes=("a", "b")))
    load, annotations = config["pipeline"]
    pack = dict(type="PackSegInputs")
    config["pipeline"] = [
        load,
        dict(type="TestTimeAug", transforms=[[dict(type="Resize", scale=(2, 1))], [annotations], [pack]]),
    ]
    dataset = build(config)
    first, augmented = dataset.pipeline.transforms
    assert isinstance(first, RgbLoader)
    assert any(isinstance(step, ClassMapLoader) for each in augmented.subroutines for step in each.transforms)
    config["pipeline"][0] = dict(type="LoadImageFromFile", color_type="grayscale")
    assert not isinstance(build(config).pipeline.transforms[0], RgbLoader)


@pytest.mark.usefixtures("mmseg")
def test_faults_of_maps_are_found_before_a_training_and_when_read(tmp_path: Path) -> None:
    config = ade(tmp_path, [[0, 1, 1]], metainfo=dict(classes=("a", "b")))
    dataset = build(config)
    for image, told in (
        (Image.new("RGB", (3, 1)), r"0\.png has 3 channels"),
        (Image.fromarray(np.array([[0, 1]], np.uint8)), r"0\.png is 2 x 1 pixels, and its image .* 3 x 1"),
        (Image.fromarray(np.array([[0, 300, 1]], np.uint16)), "unknown class 300"),
    ):
        image.save(tmp_path / "maps/0.png")
        with pytest.raises(DataError, match=told):
            dataset[0]
        with pytest.raises(DataError, match=told):
            build(config)
    ade(tmp_path, [[0, 255, 255]])
    with pytest.raises(DataError, match=r"values 0, 255, and the only class is a.*pixel_values=\(0, 255\)"):
        build(config)


@pytest.mark.usefixtures("mmseg")
def test_images_of_every_kind_are_read_with_their_class_maps(tmp_path: Path) -> None:
    """mmseg reads those of one ending: the others were counted, and left out."""
    config = ade(tmp_path, [[0, 1], [1, 0]], metainfo=dict(classes=("a", "b")))
    for name in ("2.JPEG", "3.bmp", "4.tif", "alone.png", "1.png"):  # no map of its own for the last two
        Image.new("RGB", (2, 1)).save(tmp_path / f"images/{name}")
    for number in (2, 3, 4):
        Image.fromarray(np.array([[1, 1]], np.uint8)).save(tmp_path / f"maps/{number}.png")
    dataset = pickle.loads(pickle.dumps(build(config)))  # as a worker that is not forked gets it
    names = [Path(dataset.get_data_info(place)["img_path"]).name for place in range(len(dataset))]
    assert names == ["0.jpg", "1.jpg", "2.JPEG", "3.bmp", "4.tif"]
    assert dataset[2]["gt_seg_map"].tolist() == [[1, 1]]
    assert len(build({**config, "img_suffix": "0.jpg", "seg_map_suffix": "0.png"})) == 1  # an ending that chooses
    (tmp_path / "maps/4.png").unlink()
    assert len(build(config)) == 4


@pytest.mark.usefixtures("mmseg")
def test_images_beside_their_class_maps(tmp_path: Path) -> None:
    config = ade(tmp_path, [[0, 1], [1, 0]], metainfo=dict(classes=("a", "b")))
    for path in (tmp_path / "maps").iterdir():
        path.rename(tmp_path / "images" / path.name)
    config["data_prefix"] = dict(img_path="images", seg_map_path="images")
    assert len(build(config)) == 2


@pytest.mark.usefixtures("mmseg")
def test_a_list_of_images_is_checked_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = ade(tmp_path, [[0, 1], [0, 77]], metainfo=dict(classes=("a", "b")), ann_file="list.txt")
    (tmp_path / "list.txt").write_text("0\n")
    assert len(build(config)) == 1 and "more than once" not in caplog.text
    (tmp_path / "list.txt").write_text("0\n0.jpg\n")
    assert len(build(config)) == 2 and "0.jpg more than once: each line counts" in caplog.text
    (tmp_path / "list.txt").write_text("0\n1\n")
    with pytest.raises(DataError, match="unknown class 77"):
        build(config)
    (tmp_path / "list.txt").write_text("0\n2\n")
    with pytest.raises(DataError, match=r"2\.jpg and .*2\.png are missing: .*list\.txt lists"):
        build(config)
    (tmp_path / "list.txt").write_text("")
    with pytest.raises(DataError, match=r"list\.txt is empty; expected a name on each line"):
        build(config)


@pytest.mark.usefixtures("mmdet")
def test_annotations_without_objects_are_enough_for_predictions(tmp_path: Path) -> None:
    config = coco(tmp_path, [(1, "ant")], metainfo=dict(classes=("ant",)), test_mode=True)
    content = json.loads((tmp_path / "a.json").read_text())
    del content["annotations"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    config["pipeline"] = config["pipeline"][:1]
    dataset = build(config, is_training=False)
    assert len(dataset) == 1
    metric = CocoMetric(ann_file=str(tmp_path / "a.json"), format_only=True, outfile_prefix=str(tmp_path / "found"))
    score_by_name(metric, dataset, "test_evaluator.ann_file")
    assert metric.cat_ids == [1]
    with pytest.raises(DataError, match="no list 'annotations'"):
        build(config, is_training=False, scored=True)
