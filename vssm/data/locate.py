"""Finds a data set, and checks that a model can be trained on its class folders."""

from __future__ import annotations

import os
from pathlib import Path

from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_folder import ReaderImageFolder

LAYOUT = """expected one folder per class in each split:
    {root}/{split}/<class>/<image>.jpg        (or a tar file {root}/{split}.tar of such folders)
ImageNet-1k: download it from https://image-net.org after registration and sort its validation images into class
folders, or read it from Hugging Face with reader='hfds/ILSVRC/imagenet-1k'. Without any download: the embedded set,
configs named *_shapes.py"""


def find_split(root: str | Path | None, split: str) -> Path:
    """The folder ROOT/SPLIT or the tar file ROOT/SPLIT.tar; root itself where it is a tar file or split is empty.

    Raises:
        FileNotFoundError: there is neither; the message shows the layout.
    """
    root = Path(root or "").expanduser()
    candidates = (root,) if not split or root.suffix == ".tar" else (root / split, root / f"{split}.tar")
    for candidate in candidates:
        if candidate.is_dir() or (candidate.is_file() and candidate.suffix == ".tar"):
            return candidate
    missing = root if not root.exists() else candidates[0]
    raise FileNotFoundError(f"there are no images at {missing}; {LAYOUT.format(root=root, split=split or '<split>')}")


def check_folder_classes(where: Path, reader: Reader, num_classes: int | None, *, mapped: bool) -> None:
    """Check that every class folder holds images and that the classes are not more than the model's.

    Args:
        where: the folder or tar file.
        reader: its reader, which has indexed it.
        num_classes: None allows any number.
        mapped: whether labels come from a class map, which may leave folders out.

    Raises:
        ValueError: images beside the class folders, an empty class folder, or too many classes.
    """
    is_folder = isinstance(reader, ReaderImageFolder)
    classes = reader.class_to_idx if is_folder else reader.class_name_to_idx
    if "" in classes or "." in classes:
        raise ValueError(f"{where} holds images that lie in no class folder; expected one folder per class")
    if is_folder and not mapped:
        _check_no_empty_folder(where, reader.filenames())
    highest = max(classes.values())
    if num_classes is not None and highest >= num_classes:
        raise ValueError(
            f"{where} has {len(classes)} classes with labels up to {highest}, but num_classes={num_classes}; "
            f"set num_classes={highest + 1} in the model and the data, or remove the folders that are no classes"
        )


def _check_no_empty_folder(where: Path, filenames: list[str]) -> None:
    """timm leaves out classes without images, which silently shifts the labels of all later classes."""
    filled = {name.partition(os.sep)[0] for name in filenames}
    empty = sorted(
        entry.name
        for entry in os.scandir(where)
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in filled
    )
    if empty:
        shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        raise ValueError(
            f"{where} has class folders without images: {shown}; fill or remove them "
            f"(read are {', '.join(get_img_extensions())})"
        )
