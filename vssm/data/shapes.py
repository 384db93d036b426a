"""The embedded set: images of ten kinds of shapes, drawn from a seed on first use, so that everything runs offline.

FOLDER/train/<kind>/<id>.jpg or .png    the ImageFolder layout; the label is the kind of the large shape in front
FOLDER/val/<kind>/...
FOLDER/annotations/{train,val}.json     every shape's box and visible mask, in the COCO format (run lengths)
FOLDER/segmentation/{train,val}/<id>.png    class maps: 0 is background, 1 + label a shape
FOLDER/parameters.json                  what the set was drawn from
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from vssm.data.coco import Annotation, CocoWriter, annotations_of
from vssm.data.scene import Scene, draw_scene
from vssm.data.silhouettes import KINDS

_logger = logging.getLogger(__name__)

# Raise it with any change of what is drawn: sets of other versions are then drawn anew, in folders of their own.
VERSION = 1
_PARAMETERS_FILE = "parameters.json"
_PNG_SHARE = 0.3
# Fewer images are drawn faster in this process than others start.
_LEAST_IMAGES_PER_WORKER = 500

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ShapesParameters:
    """Everything that the pixels of an embedded set depend on."""

    train: int
    val: int
    image_size: int
    seed: int
    version: int = VERSION

    def __post_init__(self) -> None:
        if min(self.train, self.val) < len(KINDS):
            raise ValueError(
                f"the embedded set needs at least one image of each of its {len(KINDS)} kinds in either part; "
                f"got train={self.train}, val={self.val}"
            )
        if self.image_size < 16:
            raise ValueError(f"shapes cannot be told apart below 16 pixels; got image_size={self.image_size}")

    @property
    def folder(self) -> str:
        return f"shapes_v{self.version}_{self.image_size}px_{self.train}+{self.val}_seed{self.seed}"


def ensure_shapes(
    root: str | Path,
    *,
    train: int = 8000,
    val: int = 1000,
    image_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Return the folder of the embedded set, drawing it first where it is not there yet.

    The set appears whole or not at all: it is drawn beside its place and moved there at the end. Processes that ask
    at the same time wait for the one that draws.

    Args:
        root: folder that holds embedded sets, one folder for each choice of the other arguments.
        train, val: number of images in either part.
        image_size: side of the square images in pixels.
        seed: same seed, same pixels.
        progress: called with (images drawn, images in all) after each image; by default each tenth is logged.

    Returns:
        The folder, in the layout above.

    Raises:
        ValueError: fewer images than kinds, or too small ones.
        OSError: the folder cannot be written.

    >>> import tempfile
    >>> folder = ensure_shapes(tempfile.mkdtemp(), train=10, val=10, image_size=32)
    >>> sorted(path.name for path in (folder / "train").iterdir())[:3]
    ['arrow', 'crescent', 'cross']
    """
    parameters = ShapesParameters(train, val, image_size, seed)
    root = Path(root).expanduser()
    folder = root / parameters.folder
    if _is_complete(folder, parameters):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{parameters.folder}.lock"):
            if not _is_complete(folder, parameters):
                _draw_atomically(folder, parameters, progress or _log_tenths)
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[-1]  # of a drawing process comes its whole traceback
        raise OSError(
            f"the embedded set cannot be written to {folder}: {reason}; choose another root, or make room there"
        ) from error
    return folder


def _is_complete(folder: Path, parameters: ShapesParameters) -> bool:
    if not folder.exists():
        return False
    file = folder / _PARAMETERS_FILE
    if not file.is_file() or json.loads(file.read_text()) != asdict(parameters):
        raise FileExistsError(
            f"{folder} is there but is not the embedded set of that name (no fitting {_PARAMETERS_FILE}); "
            f"remove it, and it will be drawn anew"
        )
    return True


def _draw_atomically(folder: Path, parameters: ShapesParameters, progress: Progress) -> None:
    """Called under the lock, so an unfinished folder here was left by a process that has died."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        done = 0
        for part, (split, count) in enumerate((("train", parameters.train), ("val", parameters.val))):
            done = _draw_split(unfinished, split, part, count, parameters, done, progress)
        (unfinished / _PARAMETERS_FILE).write_text(json.dumps(asdict(parameters), indent=2) + "\n")
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _draw_split(
    folder: Path, split: str, part: int, count: int, parameters: ShapesParameters, done: int, progress: Progress
) -> int:
    """Draw one part of the set; returns how many images have been drawn altogether."""
    (folder / "segmentation" / split).mkdir(parents=True)
    for kind in KINDS:
        (folder / split / kind).mkdir(parents=True)
    coco = CocoWriter(KINDS)
    # A loader only to draw in several processes: what it yields has been written by then.
    workers = min(_cores(), count // _LEAST_IMAGES_PER_WORKER)
    for file_name, shapes in DataLoader(
        _Drawing(folder, split, part, count, parameters), batch_size=None, num_workers=workers
    ):
        coco.add(file_name, parameters.image_size, shapes)
        done += 1
        progress(done, parameters.train + parameters.val)
    coco.write(folder / "annotations" / f"{split}.json")
    return done


@dataclass(frozen=True)
class _Drawing(Dataset):
    """Item i draws and writes image i of a split, and gives its file name and the annotations of its shapes."""

    folder: Path
    split: str
    part: int
    count: int
    parameters: ShapesParameters

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[str, list[Annotation]]:
        random = np.random.default_rng([self.parameters.seed, self.part, index])
        kind = index % len(KINDS)
        scene = draw_scene(random, kind, self.parameters.image_size)
        file = _write_image(random, scene, self.folder / self.split / KINDS[kind] / f"{index:06d}")
        Image.fromarray(scene.class_map()).save(self.folder / "segmentation" / self.split / f"{index:06d}.png")
        return file.relative_to(self.folder / self.split).as_posix(), annotations_of(scene)


def _cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _write_image(random: np.random.Generator, scene: Scene, stem: Path) -> Path:
    """Write a PNG or a JPEG, by chance; returns the file."""
    image = Image.fromarray(scene.image)
    if random.random() < _PNG_SHARE:
        file = stem.with_suffix(".png")
        image.save(file)
    else:
        file = stem.with_suffix(".jpg")
        image.save(file, quality=int(random.integers(80, 96)))
    return file


def _log_tenths(done: int, total: int) -> None:
    if done * 10 // total > (done - 1) * 10 // total:
        _logger.info("drawing the embedded set: %d of %d images", done, total)
