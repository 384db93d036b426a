"""The embedded set in mmdet's and mmseg's data sets, transforms and metrics."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, METRICS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch.utils.data import DataLoader, Dataset

from vssm.data import KINDS
from vssm.mm.runtime.seeding import keep_epoch_seed, seed_albumentations
from vssm.mm.tasks.runner import score_by_name

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
BASES = Path(__file__).resolve().parents[3] / "configs/_base_/datasets"
DETECTION, SEGMENTATION = "shapes_detection_albu.py", "shapes_segmentation_albu.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture
def config(root: Path, request: pytest.FixtureRequest) -> Iterator[Config]:
    """A base of data sets, with few small images."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    config = Config.fromfile(BASES / request.param)
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.dataset.update(root=str(root), train=12, val=10, image_size=64)
    with DefaultScope.overwrite_default_scope("mmdet" if "detection" in request.param else "mmseg"):
        yield config


def base(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("config", [name], indirect=True)


def instances(sample: dict) -> InstanceData:
    return sample["data_samples"].gt_instances


@base(DETECTION)
def test_boxes_and_masks_follow_the_image_through_albumentations(config: Config) -> None:
    config.train_dataloader.dataset.pipeline[2].transforms = [dict(type="SquareSymmetry", p=1.0)]
    dataset = DATASETS.build(config.train_dataloader.dataset)
    assert dataset.metainfo["classes"] == KINDS and len(dataset) == 12
    turned = 0
    for index in range(len(dataset)):
        truth = dataset.get_data_info(index)["instances"]
        sample = dataset[index]
        found = instances(sample)
        assert found.labels.tolist() == [shape["bbox_label"] for shape in truth]
        for box, mask in zip(found.bboxes.tensor.tolist(), found.masks.masks, strict=True):
            rows, columns = np.nonzero(mask)
            around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(np.subtract(box, around)).max() < 0.01
        assert_bright(sample["inputs"], found.masks.masks[0])
        turned += found.bboxes.tensor[0].tolist() != pytest.approx(truth[0]["bbox"])
    assert turned > 0


def assert_bright(image: torch.Tensor, mask: np.ndarray) -> None:
    """Shapes are brighter than the ground: the mask lies where the image has the shape."""
    grey = image.float().mean(0).numpy()
    assert grey[mask.astype(bool)].mean() > grey[~mask.astype(bool)].mean() + 20


@base(SEGMENTATION)
def test_class_maps_follow_the_image_through_albumentations(config: Config) -> None:
    config.train_dataloader.dataset.pipeline[2].transforms = [dict(type="SquareSymmetry", p=1.0)]
    dataset = DATASETS.build(config.train_dataloader.dataset)
    assert dataset.metainfo["classes"] == ("background", *KINDS)
    for sample in (dataset[index] for index in range(len(dataset))):
        classes = sample["data_samples"].gt_sem_seg.data[0]
        assert classes.shape == (64, 64) and classes.max() <= len(KINDS)
        assert_bright(sample["inputs"], classes.numpy() > 0)


@base(SEGMENTATION)
def test_without_the_background_classes_are_numbered_from_the_first_shape(config: Config) -> None:
    plain = DATASETS.build(config.val_dataloader.dataset)
    reduced = DATASETS.build({**config.val_dataloader.dataset, "reduce_zero_label": True})
    assert reduced.metainfo["classes"] == KINDS and len(reduced.metainfo["palette"]) == len(KINDS)
    before, after = (dataset[0]["data_samples"].gt_sem_seg.data for dataset in (plain, reduced))
    assert torch.equal(after, torch.where(before == 0, 255, before - 1))


@pytest.mark.parametrize("config", [DETECTION, SEGMENTATION], indirect=True)
def test_workers_draw_other_augmentations_each_epoch_and_the_same_by_seed(config: Config) -> None:
    """Albumentations' own generators repeat in each worker and epoch, and differ between runs with one seed."""
    config.train_dataloader.dataset.pipeline[2].transforms = [dict(type="RandomBrightnessContrast", p=1.0)]
    dataset = _FirstOnly(DATASETS.build(config.train_dataloader.dataset))

    def run(seed: int) -> list[float]:
        torch.manual_seed(seed)
        loader = DataLoader(dataset, batch_size=None, num_workers=2, worker_init_fn=keep_epoch_seed)
        return [float(value) for _ in range(2) for value in loader]

    first = run(0)
    assert first == run(0)
    assert len(set(first)) > 0.8 * len(first)
    seed_albumentations(dataset, 5)
    here = dataset[0]
    seed_albumentations(dataset, 5)
    assert dataset[0] == here


@base(DETECTION)
def test_augmentations_of_mixed_images_are_seeded(config: Config) -> None:
    inner = {**config.train_dataloader.dataset, "pipeline": config.train_dataloader.dataset.pipeline[:2]}
    steps = [dict(type="Albu", transforms=[dict(type="RandomBrightnessContrast", p=1.0)])]
    dataset = DATASETS.build(dict(type="MultiImageMixDataset", dataset=inner, pipeline=steps))

    def drawn() -> torch.Tensor:
        seed_albumentations(dataset, 5)
        return torch.as_tensor(dataset[0]["img"])

    assert torch.equal(drawn(), drawn())


class _FirstOnly(Dataset):
    """A wrapper, as mmdet's own: gives the mean of the first image, again and again."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> float:
        pixels = self.dataset[0]["inputs"].double()
        return float((pixels * torch.arange(pixels.numel()).view(pixels.shape)).mean())


@base(DETECTION)
def test_coco_metric_of_the_truth_is_one_and_of_wrong_classes_none(config: Config) -> None:
    dataset = DATASETS.build(config.val_dataloader.dataset)
    samples = [dataset[index]["data_samples"] for index in range(len(dataset))]
    for wrong, score in ((0, 1.0), (1, 0.0)):
        evaluator = Evaluator(config.val_evaluator)
        evaluator.dataset_meta = dataset.metainfo
        for sample in samples:
            truth = sample.gt_instances
            masks = torch.as_tensor(truth.masks.masks.astype(bool))
            sample.pred_instances = InstanceData(
                bboxes=truth.bboxes.tensor,
                labels=(truth.labels + wrong) % len(KINDS),
                scores=torch.ones(len(truth)),
                masks=masks,
            )
            evaluator.process(data_samples=[sample])
        metrics = evaluator.evaluate(len(samples))
        for name in ("coco/bbox_mAP", "coco/bbox_mAP_50", "coco/segm_mAP"):
            # Where a wrong class is in no image its average precision does not count.
            assert metrics[name] == pytest.approx(score, abs=0.1 if wrong else 1e-6)


@base(DETECTION)
@pytest.mark.parametrize("named", [lambda number: number, "object {}".format])
def test_ids_of_annotations_may_begin_at_0_or_be_texts(config: Config, tmp_path: Path, named: Callable) -> None:
    """The object 0 counted as not found."""
    dataset = DATASETS.build(config.val_dataloader.dataset)
    content = json.loads(Path(dataset.ann_file).read_text())
    for number, each in enumerate(content["annotations"]):
        each["id"], each["iscrowd"] = named(number), None
    (tmp_path / "own.json").write_text(json.dumps(content))
    metric = METRICS.build(dict(type="CocoMetric", ann_file=str(tmp_path / "own.json"), metric="bbox"))
    metric.dataset_meta = dataset.metainfo
    score_by_name(metric, dataset, "val_evaluator.ann_file")
    for index in range(len(dataset)):
        sample = dataset[index]["data_samples"]
        truth = sample.gt_instances
        boxes = {"bboxes": truth.bboxes.tensor, "labels": truth.labels, "scores": torch.ones(len(truth))}
        metric.process({}, [{**sample.to_dict(), "pred_instances": boxes}])
    assert metric.evaluate(len(dataset))["coco/bbox_mAP"] == 1.0


@base(DETECTION)
def test_objects_of_images_that_are_left_out_are_not_missed(config: Config) -> None:
    """A metric with a file of its own counted those of every image in it."""
    dataset = DATASETS.build({**config.val_dataloader.dataset, "indices": 3})
    metric = METRICS.build(dict(type="CocoMetric", ann_file=dataset.ann_file, metric="bbox"))
    metric.dataset_meta = dataset.metainfo
    score_by_name(metric, dataset, "val_evaluator.ann_file")
    for sample in (dataset[index]["data_samples"] for index in range(3)):
        truth = sample.gt_instances
        boxes = {"bboxes": truth.bboxes.tensor, "labels": truth.labels, "scores": torch.ones(len(truth))}
        metric.process({}, [{**sample.to_dict(), "pred_instances": boxes}])
    assert metric.evaluate(3)["coco/bbox_mAP"] == 1.0


@base(SEGMENTATION)
def test_iou_metric_of_the_truth_is_one_hundred(config: Config) -> None:
    dataset = DATASETS.build(config.val_dataloader.dataset)
    evaluator = Evaluator(config.val_evaluator)
    evaluator.dataset_meta = dataset.metainfo
    for sample in (dataset[index]["data_samples"] for index in range(len(dataset))):
        sample.pred_sem_seg = PixelData(data=sample.gt_sem_seg.data.clone())
        evaluator.process(data_samples=[sample])
    assert evaluator.evaluate(len(dataset))["mIoU"] == 100.0


def test_an_empty_image_is_a_sample_without_boxes(root: Path, tmp_path: Path) -> None:
    """An image without objects in mmdet's pipeline is background, unless it is left out."""
    config = Config.fromfile(BASES / "shapes_detection.py")
    with DefaultScope.overwrite_default_scope("mmdet"):
        options = dict(root=str(tmp_path), train=10, val=10, image_size=32)
        dataset = DATASETS.build({**config.train_dataloader.dataset, **options})
        file = Path(dataset.ann_file)
        content = json.loads(file.read_text())
        content["annotations"] = [each for each in content["annotations"] if each["image_id"] != 1]
        file.write_text(json.dumps(content))
        assert len(DATASETS.build({**config.train_dataloader.dataset, **options})) == 9
        dataset = DATASETS.build({**config.train_dataloader.dataset, **options, "filter_cfg": None})
        assert len(dataset) == 10
        assert len(instances(dataset[0])) == 0 and len(instances(dataset[1])) > 0
