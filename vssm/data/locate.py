"""Finds the folder or tar file of a data set."""

from __future__ import annotations

from pathlib import Path

LAYOUT = """expected one folder per class in each split:
    {root}/{split}/<class>/<image>.jpg        (or a tar file {root}/{split}.tar of such folders)
ImageNet-1k: download it from https://image-net.org after registration and sort its validation images into class
folders, or read it from Hugging Face with reader='hfds/ILSVRC/imagenet-1k'. Without any download: the embedded set,
configs named *_shapes.py"""
PACKED = (".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")


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
    missing, told = root if not root.exists() else candidates[0], ""
    packed = next((path for path in (root, *(root / f"{split}{end}" for end in PACKED)) if path.is_file()), None)
    if packed is not None and packed.name.endswith(PACKED):
        told = f"unpack {packed}, as only folders and tar files that are not compressed are read; "
        root = root.parent if packed == root else root
    layout = LAYOUT.format(root=root, split=split or "<split>")
    raise FileNotFoundError(f"there are no images at {missing}; {told}{layout}")
