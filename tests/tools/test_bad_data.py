"""Missing and bad data of detection and segmentation end tools/train.py with one sentence, not a traceback."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vssm import cli
from vssm.data import ensure_shapes
from vssm.data.layouts import ADE20K

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DETECTOR = CONFIGS / "detection/efficientvmamba/retinanet_efficientvmamba_demo_shapes.py"
SEGMENTOR = CONFIGS / "segmentation/vmamba/upernet_vmamba_demo_shapes.py"


@pytest.fixture
def error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Callable[..., str]:
    """Train in an empty directory; returns the sentence with which the training ends."""
    monkeypatch.chdir(tmp_path)

    def call(config: Path, *options: str) -> str:
        name = f"experiment_name=bad_{tmp_path.name}"
        assert cli.train([str(config), "--cfg-options", name, "log_level=ERROR", *options]) == 1
        told = capfd.readouterr().err
        assert "Traceback" not in told
        (line,) = [line for line in told.splitlines() if line.startswith("error: ")]
        return line

    return call


def test_coco_that_is_not_there(error: Callable[..., str], tmp_path: Path) -> None:
    config = tmp_path / "coco.py"
    data = "mmdet::_base_/datasets/coco_detection.py"
    text = DETECTOR.read_text().replace("'../../_base_/datasets/shapes_detection.py'", repr(data))
    text = text.replace("'../../", f"'{CONFIGS}/")
    config.write_text(text)
    told = error(config, "model.bbox_head.num_classes=80", "train_dataloader.persistent_workers=False")
    assert "data/coco/annotations/instances_train2017.json and data/coco/train2017 are missing" in told
    assert "cocodataset.org" in told


def test_a_class_map_with_an_unknown_value(error: Callable[..., str], tmp_path: Path) -> None:
    sizes = dict(train=10, val=10, image_size=32)
    folder = ensure_shapes(tmp_path, **sizes, layout=ADE20K) / "annotations/training"
    for file in folder.iterdir():
        Image.new("L", (32, 32), 77).save(file)
    options = [
        f"{split}_dataloader.dataset.{key}={value}"
        for split in ("train", "val")
        for key, value in {**sizes, "root": tmp_path}.items()
    ]
    told = error(SEGMENTOR, *options, "train_dataloader.num_workers=1", "val_dataloader.num_workers=0")
    assert ".png has 1024 pixels of the unknown class 77: the 11 classes are 0 to 10" in told
