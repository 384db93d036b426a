"""The embedded set: images of ten kinds of shapes, drawn from a seed at first use, so that everything runs offline.

All tasks use the same scenes, each in its own layout (see vssm.data.layouts). The file parameters.json in the folder
says from what the set was drawn.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset

from vssm.data.layouts import IMAGE_FOLDER, Layout
from vssm.data.scene import draw_scene
from vssm.data.silhouettes import KINDS
from vssm.processes import available_cores, protect_worker

_logger = logging.getLogger(__name__)

# Increase it with any change of what is drawn: each version has a folder of its own.
VERSION = 1
_PARAMETERS_FILE = "parameters.json"
# Fewer pixels per worker are drawn faster without one, as it takes time to start: 500 images of 64 pixels, 8 of 512.
_LEAST_PIXELS_PER_WORKER = 2_000_000

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ShapesParameters:
    """All that determines the pixels of an embedded set."""

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
    def name(self) -> str:
        return f"v{self.version}_{self.image_size}px_{self.train}+{self.val}_seed{self.seed}"


def ensure_shapes(
    root: str | Path,
    *,
    train: int = 8000,
    val: int = 1000,
    image_size: int = 64,
    seed: int = 0,
    layout: Layout = IMAGE_FOLDER,
    progress: Progress | None = None,
) -> Path:
    """Return the folder of the embedded set; draw it first if it does not exist.

    The set appears whole or not at all: it is drawn in a temporary folder and renamed at the end. Processes that ask
    at the same time wait for the one that draws.

    Args:
        root: folder of embedded sets, with a folder for each choice of the other arguments.
        train, val: number of images in either part.
        image_size: side of the square images in pixels.
        seed: same seed, same scenes.
        layout: of the files: IMAGE_FOLDER, COCO or ADE20K of vssm.data.layouts.
        progress: called with (images drawn, total) after each image; by default a bar on a terminal, and elsewhere a
            log line for each tenth.

    Returns:
        The folder.

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
    folder = root / f"{layout.name}_{parameters.name}"
    if _is_complete(folder, parameters):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{folder.name}.lock"):
            if not _is_complete(folder, parameters):
                with _shown(progress) as shown:
                    _draw_atomically(folder, layout, parameters, shown)
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[-1]  # an error in a worker comes with its whole traceback
        raise OSError(
            f"the embedded set cannot be written to {folder}: {reason}; choose another root, or make room there"
        ) from error
    return folder


def _is_complete(folder: Path, parameters: ShapesParameters) -> bool:
    if not folder.exists():
        return False
    file = folder / _PARAMETERS_FILE
    if not file.is_file() or _read_json(file) != asdict(parameters):
        raise FileExistsError(
            f"{folder} is there but is not the embedded set of that name (no fitting {_PARAMETERS_FILE}); "
            f"remove it, and it will be drawn anew"
        )
    return True


def _read_json(file: Path) -> object:
    """What a file of JSON holds; None if it is damaged."""
    try:
        return json.loads(file.read_text())
    except ValueError:
        return None


def _draw_atomically(folder: Path, layout: Layout, parameters: ShapesParameters, progress: Progress) -> None:
    """Draw a set. Called under the lock, so an unfinished folder was left by a process that died."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    total = parameters.train + parameters.val
    try:
        _draw_split(_Drawing(unfinished, "train", parameters.train, 0, layout, parameters), progress, 0, total)
        _draw_split(
            _Drawing(unfinished, "val", parameters.val, 1, layout, parameters), progress, parameters.train, total
        )
        (unfinished / _PARAMETERS_FILE).write_text(json.dumps(asdict(parameters), indent=2) + "\n")
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _draw_split(drawing: _Drawing, progress: Progress, done: int, total: int) -> None:
    """Draw one split; `done` of `total` images of the set are already drawn."""
    for name in drawing.layout.folders(drawing.split):
        (drawing.folder / name).mkdir(parents=True, exist_ok=True)
    # The loader only spreads the drawing over processes: each item is already written when it arrives. Its generator is
    # its own, so that the numbers that follow are the same whether the set had to be drawn or not.
    workers = min(available_cores(), len(drawing) * drawing.parameters.image_size**2 // _LEAST_PIXELS_PER_WORKER)
    records = []
    options = {"generator": torch.Generator(), "worker_init_fn": protect_worker}
    for record in DataLoader(drawing, batch_size=None, num_workers=workers, **options):
        records.append(record)
        progress(done + len(records), total)
    drawing.layout.finish(drawing.folder, drawing.split, records)


@dataclass(frozen=True)
class _Drawing(Dataset):
    """Item i draws and writes scene i of a split, and returns what the layout's `finish` needs."""

    folder: Path
    split: str
    count: int
    part: int
    layout: Layout
    parameters: ShapesParameters

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        random = np.random.default_rng([self.parameters.seed, self.part, index])
        scene = draw_scene(random, index % len(KINDS), self.parameters.image_size)
        return self.layout.write(self.folder, self.split, index, scene, random)


@contextmanager
def _shown(progress: Progress | None) -> Iterator[Progress]:
    """The function that reports progress: the caller's, a bar on a terminal, or lines in the log."""
    if progress is not None or not sys.stderr.isatty():
        yield progress or _log_tenths
        return
    from rich.console import Console
    from rich.progress import Progress as ProgressBar

    with ProgressBar(console=Console(stderr=True)) as bar:
        task = bar.add_task("drawing the embedded set", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _log_tenths(done: int, total: int) -> None:
    if done * 10 // total > (done - 1) * 10 // total:
        _logger.info("drawing the embedded set: %d of %d images", done, total)
