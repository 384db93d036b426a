"""Finds the folder or tar file of a data set."""

from __future__ import annotations

from pathlib import Path

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
