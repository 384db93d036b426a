"""Labels go by the names of classes: the training set's, in every other set, whatever its folders or files hold."""

import logging
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from vssm.data import DataError, ImageDataset, StreamedImageDataset

TRANSFORM = dict(type="TimmTransform", input_size=8, crop_pct=1.0)


def make(root: Path, classes: Sequence[str], count: int = 1) -> Path:
    """A folder for each class, with images."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8)).save(root / name / f"{number}.png")
    return root


def packed(folder: Path) -> Path:
    with tarfile.open(folder.with_suffix(".tar"), "w") as tar:
        tar.add(folder, arcname=".")
    return folder.with_suffix(".tar")


def named(dataset: ImageDataset) -> set[tuple[str, int]]:
    """Pairs of an image's folder and its label."""
    samples = [dataset[index] for index in range(len(dataset))]
    return {(Path(sample["path"].replace(".tar:", "/")).parent.name, sample["label"]) for sample in samples}


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("names", [("A", "B", "a", "b"), ("1", "10", "2", "n01", "n1"), ("Z", "a", "ä", "猫")])
def test_the_default_order_is_that_of_text(tmp_path: Path, names: tuple[str, ...], pack: bool) -> None:
    folder = make(tmp_path / "train", names)
    dataset = ImageDataset(packed(folder) if pack else folder, transform=TRANSFORM)
    assert dataset.classes == names == tuple(sorted(names))
    assert named(dataset) == {(name, label) for label, name in enumerate(names)}


@pytest.mark.parametrize("pack", [False, True])
def test_a_set_that_lacks_classes_has_the_labels_of_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pack: bool
) -> None:
    train = ImageDataset(make(tmp_path / "train", ("ant", "bee", "cat", "dog")), transform=TRANSFORM)
    folder = make(tmp_path / "val", ("dog", "bee"))
    (folder / "ant").mkdir()
    val = ImageDataset(packed(folder) if pack else folder, transform=TRANSFORM, classes=train.classes)
    assert named(val) == {("bee", 1), ("dog", 3)} and val.classes == train.classes
    assert "has nothing of 2 of the 4 classes: ant, cat" in caplog.text


def test_a_class_that_training_has_not_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "val", ("ant", "eel"))
    with pytest.raises(DataError, match=r"val has 1 classes that are none of the training's: eel; those are ant, bee"):
        ImageDataset(folder, transform=TRANSFORM, classes=("ant", "bee"))
    with pytest.raises(DataError, match="the classes have the name ant more than once"):
        ImageDataset(folder, transform=TRANSFORM, classes=("ant", "eel", "ant"))


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("junk", [".ipynb_checkpoints", "__MACOSX", "ant/.thumbnails", ".hidden/deep"])
def test_hidden_folders_are_no_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture, junk: str, pack: bool) -> None:
    folder = make(tmp_path / "train", ("ant", "bee", junk), count=2)
    Image.new("RGB", (8, 8)).save(folder / "bee" / "._0.png")
    dataset = ImageDataset(packed(folder) if pack else folder, transform=TRANSFORM)
    assert dataset.classes == ("ant", "bee") and len(dataset) == 4
    assert "3 files are hidden or no images" in caplog.text and "._0.png" in caplog.text


@pytest.mark.parametrize("pack", [False, True])
def test_every_kind_of_image_is_read_and_the_rest_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pack: bool
) -> None:
    folder = tmp_path / "train"
    (folder / "ant").mkdir(parents=True)
    read = ("a.jpg", "b.JPEG", "c.bmp", "d.tif", "e.webp", "f.PNG", "g.gif", "h.TIFF", "i.ppm", "j.Jpg")
    for name in read:
        Image.new("RGB", (8, 8)).save(folder / "ant" / name)
    for name in ("k.heic", "notes.txt", "noending"):
        (folder / "ant" / name).write_text("")
    dataset = ImageDataset(packed(folder) if pack else folder, transform=TRANSFORM)
    assert sorted(Path(dataset[index]["path"]).name for index in range(len(dataset))) == sorted(read)
    assert "3 files are hidden or no images" in caplog.text and "k.heic" in caplog.text


def test_images_beside_folders_of_images_have_no_clear_class(tmp_path: Path) -> None:
    make(tmp_path / "train", ("ant", "ant/more", "bee"))
    with pytest.raises(DataError, match=r"train/ant holds images and the folder more of images"):
        ImageDataset(tmp_path / "train", transform=TRANSFORM)


def test_the_innermost_folder_is_the_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = ImageDataset(make(tmp_path, ("six legs/bee", "six legs/ant", "four legs/cat")), transform=TRANSFORM)
    assert dataset.classes == ("ant", "bee", "cat") and "innermost folder" in caplog.text


def test_links_are_followed_once(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", ("bee",))
    make(tmp_path / "train", ("ant",))
    (tmp_path / "train" / "bee").symlink_to(tmp_path / "elsewhere" / "bee")
    (tmp_path / "train" / "ant" / "loop").symlink_to(tmp_path / "train")
    dataset = ImageDataset(tmp_path / "train", transform=TRANSFORM)
    assert named(dataset) == {("ant", 0), ("bee", 1)} and len(dataset) == 2


def test_tar_files_in_a_tar_file_are_classes_and_links_are_resolved(tmp_path: Path) -> None:
    make(tmp_path / "set", ("bee", "ant"), count=2)
    os.link(tmp_path / "set/ant/0.png", tmp_path / "set/ant/linked.png")
    for name in ("ant", "bee"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for file in sorted((tmp_path / "set" / name).iterdir()):
                tar.add(file, arcname=file.name)
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name in ("bee", "ant"):
            tar.add(tmp_path / f"{name}.tar", arcname=f"{name}.tar")
    dataset = ImageDataset(tmp_path / "train.tar", transform=TRANSFORM)
    assert named(dataset) == {("ant", 0), ("bee", 1)} and len(dataset) == 5


def test_absolute_names_in_a_tar_file(tmp_path: Path) -> None:
    """The folders above "/" were looked through without an end."""
    folder = make(tmp_path / "train", ("ant", "bee"))
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name in ("ant", "bee"):
            member = tar.gettarinfo(folder / name / "0.png")
            member.name = f"/data/{name}/0.png"
            with open(folder / name / "0.png", "rb") as file:
                tar.addfile(member, file)
    assert named(ImageDataset(tmp_path / "train.tar", transform=TRANSFORM)) == {("ant", 0), ("bee", 1)}


def test_symbolic_links_in_a_tar_file_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They were left out without a word; in a folder they are followed."""
    folder = make(tmp_path / "train", ("ant", "bee"))
    (folder / "bee/linked.png").symlink_to(folder / "ant/0.png")
    assert len(ImageDataset(folder, transform=TRANSFORM)) == 3
    assert len(ImageDataset(packed(folder), transform=TRANSFORM)) == 2
    assert "1 files are hidden or no images by their names, or links, and are left out: bee/linked.png" in caplog.text


def test_class_maps_name_what_they_merge(tmp_path: Path) -> None:
    folder = make(tmp_path / "train", ("bus", "car", "van", "other"))
    options = dict(class_map=dict(bus=1, car=0, van=0))
    train = ImageDataset(folder, transform=TRANSFORM, reader_options=options)
    assert train.classes == ("car/van", "bus") and named(train) == {("bus", 1), ("car", 0), ("van", 0)}
    turned = dict(class_map=dict(bus=0, car=1, van=1))
    val = ImageDataset(folder, transform=TRANSFORM, reader_options=turned, classes=train.classes)
    assert named(val) == named(train)


@pytest.mark.parametrize("mapped", [False, True])
def test_accents_may_be_characters_of_their_own(tmp_path: Path, mapped: bool) -> None:
    """Archives made on macOS name their folders so; the names look the same as those of the training set."""
    one, two = "b\u00e9e", "be\u0301e"
    val = make(tmp_path / "val", ("ant", two))
    options = dict(class_map={one: 0, "ant": 1}) if mapped else {}
    dataset = ImageDataset(val, transform=TRANSFORM, classes=(one, "ant"), reader_options=options)
    assert named(dataset) == {(two, 0), ("ant", 1)}
    if not mapped:
        make(tmp_path / "val/more", (one,))
        with pytest.raises(DataError, match=f"the classes have the name {one} more than once"):
            ImageDataset(val, transform=TRANSFORM)


@pytest.mark.parametrize("pack", [False, True])
def test_class_maps_in_files(tmp_path: Path, pack: bool) -> None:
    """A byte order mark is no part of the first name, whose images were left out without a word."""
    folder, file = make(tmp_path / "train", ("ant", "bee", "cat")), tmp_path / "names.txt"
    file.write_text("cat\r\nbee \nant\n\n", encoding="utf-8-sig")
    root = packed(folder) if pack else folder
    read = dict(transform=TRANSFORM, reader_options=dict(class_map=str(file)))
    dataset = ImageDataset(root, **read)
    assert dataset.classes == ("cat", "bee", "ant") and named(dataset) == {("cat", 0), ("bee", 1), ("ant", 2)}
    file.write_text("cat\n")
    assert named(ImageDataset(root, **read)) == {("cat", 0)}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"ant\n\nbee\n", r"line 2 of .*map\.txt is blank; expected a name on each line"),
        (b"ant\nbee\nant\n", r"map\.txt: the classes have the name ant more than once"),
        ("ant\nbee".encode("utf-16"), r"map\.txt is no text in UTF-8: .*; save it as UTF-8"),
        (b"\n", r"map\.txt is empty; expected a name on each line"),
        (None, r"there is no class map .*map\.txt; expected a text file with the name of a folder on each line"),
        ({"ant": -1}, "class_map gives ant the label -1; expected a whole number from 0 on"),
        ({"ant": "x"}, "class_map gives ant the label 'x'"),
    ],
    ids=["blank line", "twice", "UTF-16", "empty", "absent", "negative", "text"],
)
def test_class_maps_that_cannot_be_used(tmp_path: Path, content: bytes | dict | None, told: str) -> None:
    if isinstance(content, bytes):
        (tmp_path / "map.txt").write_bytes(content)
    options = dict(class_map=content if isinstance(content, dict) else str(tmp_path / "map.txt"))
    with pytest.raises(DataError, match=told):
        ImageDataset(make(tmp_path / "train", ("ant", "bee")), transform=TRANSFORM, reader_options=options)


def shards(folder: Path, rows: list[tuple[str, str]], name: str = "val") -> Path:
    """A WebDataset shard of images with an ending and a label each."""
    (folder / name).mkdir(parents=True)
    for number, (suffix, label) in enumerate(rows):
        Image.new("RGB", (8, 8)).save(folder / name / f"{number}.{suffix}")
        (folder / name / f"{number}.cls").write_text(label)
    with tarfile.open(folder / f"{name}-0.tar", "w") as tar:
        for file in sorted((folder / name).iterdir()):
            tar.add(file, arcname=file.name)
    return folder


def test_shards_are_labelled_by_the_names_beside_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("webdataset")
    shards(tmp_path, [("png", "0"), ("JPEG", "1"), ("bmp", "1")])
    read = dict(root=tmp_path, split="val-0.tar|3", reader="wds/", transform=TRANSFORM, classes=("ant", "bee"))
    assert [sample["label"] for sample in StreamedImageDataset(**read)] == [0, 1, 1]
    assert "no names of classes" in caplog.text
    (tmp_path / "classnames.txt").write_text("bee\nant\n")
    assert [sample["label"] for sample in StreamedImageDataset(**read)] == [1, 0, 0]
    assert StreamedImageDataset(**{**read, "classes": None}).classes == ("bee", "ant")
    (tmp_path / "classnames.txt").write_text("crane\nant\ncrane\n\n")
    assert StreamedImageDataset(**{**read, "classes": None}).classes == ("crane", "ant", "crane (2)")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (("png", "ant"), "the label of its first sample is 'ant'; expected a number"),
        (("png", ""), "expected a number"),
    ],
)
def test_shards_that_timm_would_pass_over(tmp_path: Path, row: tuple[str, str], told: str) -> None:
    pytest.importorskip("webdataset")
    shards(tmp_path, [row])
    with pytest.raises(DataError, match=told):
        StreamedImageDataset(tmp_path, "val-0.tar|1", reader="wds/", transform=TRANSFORM)


def test_shards_without_images(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    shards(tmp_path, [("png", "0")])
    options = dict(input_key="npy")
    with pytest.raises(DataError, match="its first sample has cls, png, and no image; read are npy"):
        StreamedImageDataset(tmp_path, "val-0.tar|1", reader="wds/", transform=TRANSFORM, reader_options=options)


def test_log_is_quiet_about_good_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vssm"):
        ImageDataset(make(tmp_path, ("ant", "bee")), transform=TRANSFORM)
    assert not caplog.records


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.SYMTYPE], ids=["folder", "link"])
def test_what_is_no_file_in_a_shard_is_no_label(tmp_path: Path, kind: bytes) -> None:
    pytest.importorskip("webdataset")
    shards(tmp_path, [("png", "0")])
    member = tarfile.TarInfo("0.cls")
    member.type, member.linkname = kind, "/nowhere"
    with tarfile.open(tmp_path / "val-0.tar", "w") as tar:
        tar.add(tmp_path / "val/0.png", arcname="0.png")
        tar.addfile(member)
    with pytest.raises(DataError, match="the label of its first sample is ''; expected a number"):
        StreamedImageDataset(tmp_path, "val-0.tar|1", reader="wds/", transform=TRANSFORM)
