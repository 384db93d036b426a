"""Configs build the published recipes; transforms are built from plain data; wrong data are named."""

import importlib.metadata
import logging
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

from vssm.data import AlbumentationsTransform, DataError, TimmTransform, build_transform
from vssm.data.optional import import_albumentations

CONFIGS = Path(__file__).parents[2] / "configs" / "_base_" / "datasets"
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))


def config_of(name: str) -> dict:
    mmengine_config = pytest.importorskip("mmengine.config")
    return mmengine_config.Config.fromfile(CONFIGS / f"{name}.py")


def parts(transform: TimmTransform) -> dict[type, object]:
    return {type(part): part for part in transform.transform.transforms}


@pytest.mark.parametrize("name", ["imagenet_deit", "imagenet_swin"])
def test_training_recipe_is_the_published_one(name: str) -> None:
    found = parts(build_transform(config_of(name).train_dataloader.dataset.transform))
    crop = found[RandomResizedCropAndInterpolation]
    assert (crop.size, crop.scale, crop.ratio) == ((224, 224), (0.08, 1.0), (3 / 4, 4 / 3))
    assert crop.interpolation == transforms.InterpolationMode.BICUBIC
    assert found[transforms.RandomHorizontalFlip].p == 0.5
    augment = found[RandAugment]
    assert augment.num_layers == 2
    assert {(op.magnitude, op.magnitude_std) for op in augment.ops} == {(9, 0.5)}
    increasing = {op.name for op in augment.ops}
    assert "PosterizeIncreasing" in increasing and "Posterize" not in increasing
    erasing = found[RandomErasing]
    assert (erasing.probability, erasing.max_count, erasing.rand_color, erasing.per_pixel) == (0.25, 1, False, True)
    assert found[transforms.Normalize].mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert found[transforms.Normalize].std.tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert transforms.ColorJitter not in found, "timm leaves it out where RandAugment is on"


@pytest.mark.parametrize(("name", "jitter", "sampler"), [
    ("imagenet_deit", 0.3, "RepeatedAugmentationSampler"),
    ("imagenet_swin", 0.4, "DefaultSampler"),
])  # fmt: skip
def test_what_tells_the_recipes_apart(name: str, jitter: float, sampler: str) -> None:
    config = config_of(name)
    assert config.train_dataloader.dataset.transform.color_jitter == jitter
    assert config.train_dataloader.sampler.type == sampler
    assert config.train_dataloader.batch_size == 128 and config.train_dataloader.drop_last
    mixup = config.data_preprocessor.mixup
    assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.label_smoothing, mixup.num_classes) == (0.8, 1.0, 0.1, 1000)
    assert (mixup.prob, mixup.switch_prob, mixup.mode) == (1.0, 0.5, "batch")


@pytest.mark.parametrize("name", ["imagenet_deit", "imagenet_swin"])
def test_evaluation_resizes_to_256_and_takes_the_middle_224(name: str) -> None:
    config = config_of(name)
    assert config.test_dataloader == config.val_dataloader
    assert not config.val_dataloader.dataset.get("skip_bad_images", False), "a replaced image would falsify the score"
    transform = build_transform(config.val_dataloader.dataset.transform)
    middle = NOISE.resize((341, 256), Image.Resampling.BICUBIC).crop((58, 16, 282, 240))
    pixels = torch.from_numpy(np.array(middle)).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(transform(NOISE), (pixels - mean) / std)


def test_the_embedded_set_has_both_splits_of_one_set() -> None:
    config = config_of("shapes")
    train, val = (config[f"{split}_dataloader"].dataset for split in ("train", "val"))
    assert (train.split, val.split) == ("train", "val")
    for name in ("type", "root", "train", "val", "image_size", "seed"):
        assert train[name] == val[name]
    for dataset in (train, val):
        assert build_transform(dataset.transform)(NOISE).shape == (3, 64, 64)


def test_a_callable_is_left_as_it_is() -> None:
    assert build_transform(transforms.ToTensor).__name__ == "ToTensor"


def test_wrong_names_are_told() -> None:
    with pytest.raises(
        ValueError, match="no transform is of type 'Tim'; known: TimmTransform, AlbumentationsTransform"
    ):
        build_transform(dict(type="Tim"))
    with pytest.raises(ValueError, match="no transform is of type None"):
        build_transform(dict(input_size=32))
    with pytest.raises(ValueError, match=r"no option 'color_jiter'; known: .*color_jitter"):
        build_transform(dict(type="TimmTransform", input_size=32, color_jiter=0.3))


class TestAlbumentations:
    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("albumentations")

    def test_a_pipeline_from_a_config(self) -> None:
        transform = build_transform(
            dict(
                type="AlbumentationsTransform",
                transforms=[
                    dict(type="RandomResizedCrop", size=(32, 48)),
                    dict(type="OneOf", transforms=[dict(type="HorizontalFlip"), dict(type="Transpose", p=0.0)], p=1.0),
                    dict(type="RandomBrightnessContrast", p=0.5),
                ],
            )
        )
        result = transform(NOISE)
        assert result.shape == (3, 32, 48) and result.dtype == torch.float32

    def test_pixels_are_normalised(self) -> None:
        transform = AlbumentationsTransform([dict(type="HorizontalFlip", p=1.0)], mean=(0.5,) * 3, std=(0.25,) * 3)
        flipped = torch.from_numpy(np.array(NOISE)[:, ::-1].copy()).permute(2, 0, 1)
        torch.testing.assert_close(transform(NOISE), (flipped / 255 - 0.5) / 0.25)

    def test_chance_comes_from_torch(self) -> None:
        transform = AlbumentationsTransform([dict(type="RandomCrop", height=8, width=8)])
        torch.manual_seed(3)
        first, second = transform(NOISE), transform(NOISE)
        torch.manual_seed(3)
        assert torch.equal(transform(NOISE), first)
        assert not torch.equal(first, second)

    def test_wrong_pipelines_are_told(self) -> None:
        with pytest.raises(ValueError, match="has no transform 'HorizontalFlop'"):
            AlbumentationsTransform([dict(type="HorizontalFlop")])
        with pytest.raises(ValueError, match=r"HorizontalFlip has no argument 'probability'; known: .*p"):
            AlbumentationsTransform([dict(type="HorizontalFlip", probability=1.0)])
        with pytest.raises(ValueError, match=r"RandomCrop refuses its arguments"):
            AlbumentationsTransform([dict(type="RandomCrop", height=-1, width=8)])
        with pytest.raises(ValueError, match="leave Normalize out of the pipeline"):
            AlbumentationsTransform([dict(type="Normalize")])
        with pytest.raises(ValueError, match="made float32; expected uint8"):
            AlbumentationsTransform([dict(type="ToFloat")])(NOISE)

    def test_the_network_is_not_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NO_ALBUMENTATIONS_UPDATE", raising=False)
        import_albumentations()
        assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"

    def test_the_successor_with_another_licence_is_warned_of(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(importlib.metadata, "version", lambda name: {"albumentationsx": "2.0.11"}[name])
        with caplog.at_level(logging.WARNING):
            import_albumentations()
        assert "AGPL-3.0" in caplog.text and "pip uninstall albumentationsx" in caplog.text


def test_a_missing_albumentations_gives_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(ImportError, match=r"pip install 'albumentations>=2\.0\.8,<2\.1'"):
        AlbumentationsTransform([])


def test_no_warning_where_only_albumentations_is_installed(caplog: pytest.LogCaptureFixture) -> None:
    module = pytest.importorskip("albumentations")
    with caplog.at_level(logging.WARNING):
        assert import_albumentations() is module
    assert isinstance(module, ModuleType) and not caplog.messages


def test_sizes_that_would_fill_the_memory():
    with pytest.raises(
        ValueError, match=r"20000 pixels a side, from input_size=200 and crop_pct; expected at most 9459"
    ):
        TimmTransform(200, crop_pct=0.01)
    oblong = Image.new("RGB", (1000, 2))
    assert TimmTransform(224)(oblong).shape == (3, 224, 224)
    with pytest.raises(DataError, match=r"1000 x 2 pixels is too oblong to be enlarged to 1000 pixels"):
        TimmTransform(1000, crop_pct=1.0)(oblong)
