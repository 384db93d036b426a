"""Every source of images gives the same samples; each fault is one sentence."""

import io
import logging
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vssm.data import BadImageError, DataError, ImageDataset, ShapesDataset, StreamedImageDataset
from vssm.data.dataset import MOST_BAD_IN_A_ROW

CLASSES = ("ant", "bee", "cat")
PER_CLASS = 4
TRANSFORM = dict(type="TimmTransform", input_size=16, crop_pct=1.0)


def image_of(label: int, number: int) -> Image.Image:
    """A plain image whose colour tells which one it is."""
    return Image.new("RGB", (20, 20), (80 * label, 40 * number, 7))


def encoded(label: int, number: int) -> bytes:
    file = io.BytesIO()
    image_of(label, number).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """ROOT/{train,val}/<class>/<number>.png"""
    root = tmp_path / "images"
    for split in ("train", "val"):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(PER_CLASS):
                (root / split / name / f"{number}.png").write_bytes(encoded(label, number))
    return root


def seen(dataset: torch.utils.data.Dataset) -> list[tuple[int, float, float]]:
    """For each sample its label and its first pixel's red and green, which tell the label and number of the image."""
    transform_free = [(sample["label"], *sample["inputs"][:2, 0, 0].tolist()) for sample in dataset]
    return sorted((label, round(red, 3), round(green, 3)) for label, red, green in transform_free)


def expected() -> list[tuple[int, float, float]]:
    mean, std = (0.485, 0.456), (0.229, 0.224)
    return sorted(
        (label, round((80 * label / 255 - mean[0]) / std[0], 3), round((40 * number / 255 - mean[1]) / std[1], 3))
        for label in range(len(CLASSES))
        for number in range(PER_CLASS)
    )


def in_order(dataset: ImageDataset) -> list[dict]:
    return [dataset[index] for index in range(len(dataset))]


def test_folder(folder: Path) -> None:
    dataset = ImageDataset(folder, "train", transform=TRANSFORM, num_classes=3)
    assert len(dataset) == 12
    samples = in_order(dataset)
    assert seen(samples) == expected()
    assert samples[0]["inputs"].shape == (3, 16, 16) and samples[0]["inputs"].dtype == torch.float32
    assert samples[5]["path"] == str(folder / "train" / "bee" / "1.png")


def test_root_may_be_the_folder_of_classes(folder: Path) -> None:
    assert seen(in_order(ImageDataset(folder / "val", transform=TRANSFORM))) == expected()


def pack(folder: Path, file: Path) -> None:
    with tarfile.open(file, "w") as tar:
        tar.add(folder, arcname=".")


@pytest.mark.parametrize("name", ["set.zip", "set.tar.gz", "set/train.zip"])
def test_packed_folders_are_to_be_unpacked(name: str, tmp_path: Path) -> None:
    packed = tmp_path / name
    packed.parent.mkdir(exist_ok=True)
    packed.write_bytes(b"PK")
    with pytest.raises(FileNotFoundError, match=f"no images at .*; unpack {packed}, as only folders and tar files"):
        ImageDataset(root=tmp_path / "set" if "/" in name else packed, split="train", transform=None)


def test_tar(folder: Path) -> None:
    pack(folder / "train", folder / "packed.tar")
    for dataset in (
        ImageDataset(folder / "packed.tar", "train", transform=TRANSFORM, num_classes=3),
        ImageDataset(folder, "packed", transform=TRANSFORM, num_classes=3),
    ):
        samples = in_order(dataset)
        assert seen(samples) == expected()
        assert samples[0]["path"].startswith(str(folder / "packed.tar")) and samples[0]["path"].endswith("ant/0.png")


@pytest.mark.parametrize("inner", [False, True])
def test_a_tar_file_that_is_cut_in_a_header_or_damaged_is_refused(inner: bool, folder: Path) -> None:
    """Python's tarfile takes either for the end, and the other images were left out."""
    pack(folder / "train", folder / "whole.tar")
    with tarfile.open(folder / "whole.tar") as tar:
        place = next(member.offset for member in reversed(tar.getmembers()) if member.isfile())
    whole, file = (folder / "whole.tar").read_bytes(), folder / "cut.tar"
    for broken in (whole[:place], whole[: place + 100], whole[:place] + b"?" * 512 + whole[place + 512 :]):
        file.write_bytes(broken)
        if inner:
            (folder / "inner").mkdir(exist_ok=True)
            file.rename(folder / "inner/ant.tar")
            pack(folder / "inner", file)
        with pytest.raises(ValueError, match=r"cannot read .*cut\.tar: it is cut short or damaged at byte \d+"):
            ImageDataset(file, transform=TRANSFORM)


def test_tar_read_by_loader_workers(folder: Path) -> None:
    pack(folder / "train", folder / "train.tar")
    dataset = ImageDataset(folder / "train.tar", transform=TRANSFORM)
    assert dataset[3]["label"] == 0, "a read in this process must not disturb those of the workers"
    batches = list(DataLoader(dataset, batch_size=5, num_workers=2))
    reds = torch.cat([batch["inputs"][:, 0, 0, 0] for batch in batches])
    assert sorted(round(red, 3) for red in reds.tolist()) == sorted(red for _, red, _ in expected())
    assert [len(batch["label"]) for batch in batches] == [5, 5, 2]
    labels = torch.cat([batch["label"] for batch in batches])
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and labels.dtype == torch.int64


def test_hugging_face_folder_offline(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    dataset = ImageDataset(
        tmp_path / "cache", "validation", reader=f"hfds/{folder}", transform=TRANSFORM, num_classes=3
    )
    assert seen(in_order(dataset)) == expected()


def test_hugging_face_table_offline(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [(label, number) for label in range(3) for number in range(PER_CLASS)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(CLASSES)))
    table = datasets.Dataset.from_dict(
        {"image": [{"bytes": encoded(*row), "path": None} for row in rows], "label": [row[0] for row in rows]}, features
    )
    (tmp_path / "table").mkdir()
    table.to_parquet(tmp_path / "table" / "train.parquet")
    reader = f"hfds/{tmp_path / 'table'}"
    dataset = ImageDataset(tmp_path / "cache", "train", reader=reader, transform=TRANSFORM, num_classes=3)
    assert seen(in_order(dataset)) == expected()
    assert dataset[3]["path"] == f"{reader}[train][3]"
    with pytest.raises(ValueError, match=r"table\[train\] has 3 classes \(ant, bee, cat\), but num_classes=2"):
        ImageDataset(tmp_path / "cache", "train", reader=reader, transform=TRANSFORM, num_classes=2)
    turned = ("cat", "ant", "bee")
    dataset = ImageDataset(tmp_path / "cache", "train", reader=reader, transform=TRANSFORM, classes=turned)
    assert [turned[sample["label"]] for sample in in_order(dataset)] == [CLASSES[label] for label, _ in rows]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two WebDataset shards of six images."""
    webdataset = pytest.importorskip("webdataset")
    rows = [(label, number) for label in range(3) for number in range(PER_CLASS)]
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"train-{shard}.tar")) as writer:
            for row in rows[6 * shard : 6 * shard + 6]:
                writer.write({"__key__": f"{row[0]}_{row[1]}", "png": encoded(*row), "cls": str(row[0])})
    return tmp_path


def test_shards(shards: Path) -> None:
    dataset = StreamedImageDataset(shards, "train-{0..1}.tar|12", reader="wds/", transform=TRANSFORM, num_classes=3)
    assert len(dataset) == 12
    assert seen(dataset) == expected()


def test_shards_are_dealt_to_loader_workers(shards: Path) -> None:
    dataset = StreamedImageDataset(shards, "train-{0..1}.tar|12", reader="wds/", transform=TRANSFORM)
    dataset.set_workers(2)
    samples = [sample for batch in DataLoader(dataset, batch_size=None, num_workers=2) for sample in [batch]]
    assert seen(samples) == expected()


def test_shards_in_training_are_shuffled_by_epoch(shards: Path) -> None:
    dataset = StreamedImageDataset(
        shards, "train-{0..1}.tar|12", reader="wds/", transform=TRANSFORM, is_training=True, batch_size=4
    )
    assert len(dataset) == 12 and len(list(dataset)) == 12
    dataset.set_epoch(1)
    assert len(list(dataset)) == 12


def test_sixteen_bits_in_a_shard_are_scaled(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    file = io.BytesIO()
    Image.fromarray(np.full((20, 20), 128 * 257, dtype=np.uint16)).save(file, "PNG")
    with webdataset.TarWriter(str(tmp_path / "train-0.tar")) as writer:
        writer.write({"__key__": "grey", "png": file.getvalue(), "cls": "0"})
    transform = dict(TRANSFORM, mean=(0.0,) * 3, std=(1.0,) * 3)
    (sample,) = StreamedImageDataset(tmp_path, "train-0.tar|1", reader="wds/", transform=transform)
    torch.testing.assert_close(sample["inputs"], torch.full((3, 16, 16), 128 / 255))


def test_a_bad_image_in_a_shard_is_dropped_with_a_warning(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(shards / "train-2.tar")) as writer:
        writer.write({"__key__": "broken", "png": encoded(0, 0)[:50], "cls": "0"})
    dataset = StreamedImageDataset(shards, "train-{0..2}.tar|13", reader="wds/", transform=TRANSFORM)
    with caplog.at_level(logging.WARNING):
        assert seen(dataset) == expected()
    assert "Ignoring" in caplog.text


@pytest.mark.parametrize(("mode", "size"), [("F", (8, 8)), ("L", (4001, 8))], ids=["floats", "oblong"])
def test_images_of_a_stream_follow_the_same_rules(tmp_path: Path, mode: str, size: tuple[int, int]) -> None:
    webdataset = pytest.importorskip("webdataset")
    file = io.BytesIO()
    Image.new(mode, size).save(file, "TIFF")
    with webdataset.TarWriter(str(tmp_path / "train-0.tar")) as writer:
        writer.write({"__key__": "odd", "tif": file.getvalue(), "cls": "0"})
    with pytest.raises(BadImageError, match=r"train-0\.tar.* cannot be read as an image: .*(unknown range|oblong)"):
        list(StreamedImageDataset(tmp_path, "train-0.tar|1", reader="wds/", transform=TRANSFORM))


def test_labels_of_a_stream_are_checked(shards: Path) -> None:
    dataset = StreamedImageDataset(shards, "train-{0..1}.tar|12", reader="wds/", transform=TRANSFORM, num_classes=2)
    with pytest.raises(ValueError, match=r"has the label 2; expected 0 to 1 \(num_classes=2\)"):
        list(dataset)


def test_readers_and_classes_of_data_set_must_fit(folder: Path) -> None:
    with pytest.raises(ValueError, match="use StreamedImageDataset"):
        ImageDataset(folder, "train", reader="wds/", transform=TRANSFORM)
    with pytest.raises(ValueError, match="does not stream; use ImageDataset"):
        StreamedImageDataset(folder, "train", reader="hfds/x", transform=TRANSFORM)
    with pytest.raises(ValueError, match="no reader is named 'foldr'"):
        ImageDataset(folder, "train", reader="foldr", transform=TRANSFORM)


def break_image(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:50])


def test_a_truncated_image_is_fatal_where_the_config_says_so(folder: Path) -> None:
    break_image(folder / "train" / "bee" / "2.png")
    dataset = ImageDataset(folder, "train", transform=TRANSFORM)
    with pytest.raises(BadImageError, match=r"train/bee/2\.png cannot be read as an image"):
        dataset[6]


def test_a_truncated_image_is_reported_once_counted_and_replaced(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    break_image(folder / "train" / "bee" / "2.png")
    break_image(folder / "train" / "cat" / "3.png")
    dataset = ImageDataset(folder, "train", transform=TRANSFORM, skip_bad_images=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            samples = in_order(dataset)
    assert len(samples) == 12
    assert samples[6]["path"].endswith("bee/3.png") and samples[6]["label"] == 1
    assert samples[11]["path"].endswith("ant/0.png") and samples[11]["label"] == 0
    assert dataset.bad_images == 2
    assert [("bee/2.png" in text, "cat/3.png" in text) for text in caplog.messages] == [(True, False), (False, True)]


def test_bad_images_found_by_loader_workers_are_counted(folder: Path) -> None:
    break_image(folder / "train" / "ant" / "0.png")
    break_image(folder / "train" / "cat" / "3.png")
    dataset = ImageDataset(folder, "train", transform=TRANSFORM, skip_bad_images=True)
    for _ in range(2):
        assert sum(len(batch["label"]) for batch in DataLoader(dataset, batch_size=2, num_workers=2)) == 12
    assert dataset.bad_images == 2


def test_only_bad_images_end_it(folder: Path) -> None:
    for file in folder.glob("train/*/*.png"):
        break_image(file)
    dataset = ImageDataset(folder, "train", transform=TRANSFORM, skip_bad_images=True)
    with pytest.raises(DataError, match=f"{MOST_BAD_IN_A_ROW} images in a row could not be read"):
        dataset[0]


@pytest.mark.parametrize("pipe", [False, True])
def test_an_image_that_vanished_or_became_a_pipe_counts_as_bad(folder: Path, pipe: bool) -> None:
    dataset = ImageDataset(folder, "train", transform=TRANSFORM, skip_bad_images=True)
    (folder / "train" / "ant" / "0.png").unlink()
    if pipe:
        os.mkfifo(folder / "train" / "ant" / "0.png")
    assert dataset[0]["path"].endswith("ant/1.png")
    assert dataset.bad_images == 1


def test_a_fault_of_the_transform_is_not_taken_for_a_bad_image(folder: Path) -> None:
    def broken(image: Image.Image) -> torch.Tensor:
        raise ValueError("a fault of the transform")

    with pytest.raises(ValueError, match="a fault of the transform"):
        ImageDataset(folder, "train", transform=broken, skip_bad_images=True)[0]


def test_a_class_folder_without_images_is_named(folder: Path) -> None:
    (folder / "train" / "dog").mkdir()
    (folder / "train" / "bat").mkdir()
    (folder / "train" / "bat" / "notes.txt").write_text("")
    (folder / "train" / ".cache").mkdir()
    with pytest.raises(ValueError, match=r"class folders without images: bat, dog; fill or remove them"):
        ImageDataset(folder, "train", transform=TRANSFORM)


def test_images_beside_the_class_folders_are_refused(folder: Path) -> None:
    image_of(0, 0).save(folder / "train" / "stray.png")
    pack(folder / "train", folder / "packed.tar")
    for split in ("train", "packed"):
        with pytest.raises(ValueError, match="images that lie in no class folder"):
            ImageDataset(folder, split, transform=TRANSFORM)


def test_more_classes_than_the_model_has(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"images/train has 3 classes \(ant, bee, cat\), but num_classes=2; set num_classes=3"
    ):
        ImageDataset(folder, "train", transform=TRANSFORM, num_classes=2)
    pack(folder / "train", folder / "packed.tar")
    with pytest.raises(ValueError, match="has 3 classes"):
        ImageDataset(folder, "packed", transform=TRANSFORM, num_classes=2)


def test_missing_data_say_what_is_expected(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        ImageDataset(tmp_path / "nowhere", "train", transform=TRANSFORM)
    for part in (f"no images at {tmp_path / 'nowhere'}", "train/<class>/<image>.jpg", "image-net.org", "hfds/"):
        assert part in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"no images at .*images/test"):
        ImageDataset(folder, "test", transform=TRANSFORM)


def test_a_folder_without_any_image(tmp_path: Path) -> None:
    (tmp_path / "train" / "ant").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"train has no images in class folders"):
        ImageDataset(tmp_path, "train", transform=TRANSFORM)


def test_a_tar_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_text("this is no tar file")
    with pytest.raises(ValueError, match=r"cannot read .*train\.tar"):
        ImageDataset(tmp_path, "train", transform=TRANSFORM)


def test_missing_shards_are_not_passed_over(shards: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"2 of 4 shards are not there, the first of them .*train-2\.tar"):
        StreamedImageDataset(shards, "train-{0..3}.tar|24", reader="wds/", transform=TRANSFORM)


def test_a_stream_without_a_length_cannot_be_trained_on(shards: Path) -> None:
    with pytest.raises(ValueError, match="num_samples not specified"):
        StreamedImageDataset(shards, "train-{0..1}.tar", reader="wds/", transform=TRANSFORM, is_training=True)


def test_a_reader_whose_package_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install datasets"):
        ImageDataset(folder, "train", reader="hfds/x", transform=TRANSFORM)


def test_class_map_chooses_the_labels(folder: Path) -> None:
    options = dict(class_map=dict(bee=0, ant=1))
    dataset = ImageDataset(folder, "train", transform=TRANSFORM, reader_options=options)
    assert sorted((sample["label"], Path(sample["path"]).parent.name) for sample in in_order(dataset)) == [
        *[(0, "bee")] * 4,
        *[(1, "ant")] * 4,
    ]


def test_shapes(tmp_path: Path) -> None:
    arguments = dict(train=20, val=10, image_size=32, transform=TRANSFORM)
    train, val = (ShapesDataset(tmp_path, split, **arguments) for split in ("train", "val"))
    assert (len(train), len(val)) == (20, 10)
    assert sorted(sample["label"] for sample in in_order(val)) == list(range(10))
    for sample in in_order(train):
        assert Path(sample["path"]).parent.name == train.classes[sample["label"]]
    assert np.isfinite(train[0]["inputs"].numpy()).all()
