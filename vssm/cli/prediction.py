"""tools/predict.py: predicts classes, objects or class maps of images, draws them, and writes them as JSON.

Images are read, predicted, drawn and forgotten a batch at a time, so that memory does not grow with their number.
"""

import argparse
import glob
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from PIL import Image

from vssm import inference
from vssm.data import BadImageError, read_rgb
from vssm.data.classes import some
from vssm.data.decode import IMAGE_SUFFIXES, is_image_name
from vssm.data.folders import is_hidden, walk_files
from vssm.errors import ConfigError, UserError
from vssm.files import check_outputs, make_directory, replace_atomically, unfinished
from vssm.inference.predictor import Predictor, predictor_of, read_labels, resolve_device
from vssm.nn import run_fast
from vssm.viz import draw_predictions
from vssm.viz.predictions import PORTRAIT
from vssm.viz.style import picture_format

if TYPE_CHECKING:
    from vssm.mm.tasks.scenes import ScenePredictor

# Images on one picture of a classifier's predictions.
SHEET = 40
# Bytes in the name of a file, on Linux, macOS and Windows.
LONGEST_NAME = 255


class UnreadImagesError(UserError):
    """Some images could not be read; the results of all others are written."""


def run_prediction(arguments: argparse.Namespace) -> None:
    """Predict as the arguments of `predict_parser` say.

    Raises:
        UnreadImagesError: at the end, if images could not be read.
    """
    paths = find_images(arguments.images)
    config = arguments.model if arguments.model and arguments.model.endswith(".py") else None
    others = (arguments.checkpoint, arguments.labels, config)
    check_out(arguments.out, paths, overwrite=arguments.overwrite, others=others)
    predictor = load_predictor(arguments.model, arguments.checkpoint, arguments.labels, arguments.device)
    if not isinstance(predictor, Predictor):
        maps = predictor.class_map_files(pictures_of(arguments.out, paths))
        check_outputs(maps, "--out", arguments.overwrite, (*paths, *others))
    model = (
        predictor.model if isinstance(predictor, Predictor) else getattr(predictor.model, "backbone", predictor.model)
    )
    run_fast(model, None if arguments.compile is None else arguments.compile == "on", _tell)
    bad = []
    try:
        with progress_line(len(paths)) as done:
            for result in predict_files(predictor, paths, arguments.out, arguments.batch):
                done(result)
                if "error" in result:
                    bad.append(result["error"])
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"--batch {arguments.batch} takes more memory than the device has: choose fewer") from error
    print(f"results: {arguments.out.with_suffix('.json')}")
    if bad:
        raise UnreadImagesError(
            f"{len(bad)} of {len(paths)} images could not be read; the others' results are written: "
            + "; ".join(bad[:10])
            + (f"; and {len(bad) - 10} more, see the JSON" if len(bad) > 10 else "")
        )


def _tell(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")


def find_images(given: Sequence[str | Path]) -> list[Path]:
    """The image files among files, folders and patterns, each once; those of folders and patterns sorted.

    Of a folder, the images in folders inside it too; files that are no images by their names are counted on stderr. A
    file that is named is taken whatever its ending.

    Raises:
        ConfigError: a folder or a pattern without images.
    """
    found: dict[str, Path] = {}  # by where links lead to
    for text in map(str, given):
        if os.path.isdir(text):
            walked = sorted(walk_files(text))
            names = [name for name in walked if is_image_name(name) and not is_hidden(name)]
            images = [Path(text, name) for name in names]
            if len(names) < len(walked):
                others = sorted(set(walked) - set(names))
                sys.stderr.write(f"{text}: {len(others)} other files are left out: {some(others)}\n")
        elif glob.has_magic(text) and not os.path.exists(text):
            images = sorted(path for path in map(Path, glob.glob(text, recursive=True)) if path.is_file())
        else:
            found.setdefault(os.path.realpath(text), Path(text))
            continue
        if not images:
            raise ConfigError(f"there are no images in {text} (read are {', '.join(IMAGE_SUFFIXES)})")
        for path in images:
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def check_out(
    picture: Path, paths: Sequence[Path], overwrite: bool = False, others: Iterable[str | Path | None] = ()
) -> None:
    """Check where pictures go, before anything is predicted.

    Args:
        picture: the name that the others are made from.
        paths: the images.
        overwrite: whether earlier results may be replaced.
        others: further files that are read.

    Raises:
        ConfigError: a format that is not known, a folder that cannot be written, or a file that would be overwritten.
    """
    try:
        picture_format(picture)
    except ValueError as error:
        raise ConfigError(f"--out {error}") from error
    make_directory(picture.parent, "--out")
    if picture.is_dir():
        raise ConfigError(f"--out {picture} is a folder; expected the name of a file in it")
    files = (picture, picture.with_suffix(".json"), *pictures_of(picture, paths), *sheets_of(picture, len(paths)))
    check_outputs(files, "--out", overwrite, (*paths, *others))


def load_predictor(
    name: str | None, checkpoint: Path | None = None, labels: Path | None = None, device: str | None = None
) -> "Predictor | ScenePredictor":
    """Build a model with its weights; only detectors and segmentors need the training packages.

    Args:
        name: a timm model, or a configuration file of detection or segmentation; None for a
            checkpoint of tools/train.py.
        checkpoint, labels, device: see `vssm.inference.load_predictor`.

    Raises:
        ConfigError, CheckpointError: unknown name, weights that do not fit or cannot be downloaded, a wrong number of
            labels, no such device.
    """
    if name is not None and name.endswith(".py"):
        from vssm.mm.tasks import scenes

        return scenes.of_config(name, checkpoint, read_labels(labels), resolve_device(device))
    saved = inference.read_checkpoint(checkpoint) if checkpoint else {}
    if inference.is_training(saved) and saved["meta"]["backbone"] is None:
        from vssm.mm.tasks import scenes

        return scenes.of_training(saved, checkpoint, read_labels(labels), resolve_device(device))
    return predictor_of(saved, name, checkpoint, labels, device)


def predict_files(
    predictor: "Predictor | ScenePredictor", paths: Sequence[Path], picture: Path, batch: int = 8
) -> Iterator[dict]:
    """Predict image files, draw the results, and write them as JSON beside the picture, as they are asked for.

    Args:
        predictor: a classifier draws up to `SHEET` images on a picture, with a number if there are several pictures; a
            detector or segmentor one image, with the name of the image appended if there are several.
        paths: of the images.
        picture: the file to write.
        batch: images in memory at a time.

    Yields:
        For each image its path as ``image``, the ``picture``, and ``classes`` (pairs of a class and its probability,
        best first; or a class and its share of the pixels) or ``objects``. For one that cannot be read ``error``.

    Raises:
        ConfigError: the picture cannot be written.
    """
    make_directory(picture.parent, "--out")
    draw = _Sheets(predictor, picture, len(paths)) if isinstance(predictor, Predictor) else _Scenes(predictor)
    files = pictures_of(picture, paths)
    with _json_list(picture.with_suffix(".json")) as write:
        for start in range(0, len(paths), batch):
            chunk = paths[start : start + batch]
            read = [_read(path, getattr(predictor, "upright", True)) for path in chunk]
            good = [place for place, image in enumerate(read) if isinstance(image, Image.Image)]
            found = iter(draw([read[place] for place in good], [files[start + place] for place in good]))
            for path, image in zip(chunk, read, strict=True):
                result = {"error": str(image)} if isinstance(image, BadImageError) else next(found)
                write({"image": str(path), **result})
                yield {"image": str(path), **result}
            del read, image, found  # before the next batch is read
        draw.finish()


def _read(path: Path, upright: bool) -> Image.Image | BadImageError:
    try:
        return read_rgb(str(path), str(path), upright=upright)
    except BadImageError as error:
        return error.with_traceback(None)


class _Sheets:
    """Predicts with a classifier, and draws small copies of the images on pictures of many."""

    def __init__(self, predictor: Predictor, picture: Path, count: int) -> None:
        self.predictor = predictor
        self.files = sheets_of(picture, count)
        self.number = 1
        self.images: list[Image.Image] = []
        self.predictions: list[list[tuple[str, float]]] = []

    def __call__(self, images: list[Image.Image], files: Sequence[Path]) -> Iterator[dict]:
        for image, best in zip(images, self.predictor.batch(images) if images else (), strict=True):
            if len(self.images) == SHEET:
                self.finish()
                self.number += 1
            small = image.copy()
            small.thumbnail((PORTRAIT, PORTRAIT))
            self.images.append(small)
            self.predictions.append(best)
            yield {"picture": str(self._file()), "classes": best}

    def _file(self) -> Path:
        return self.files[self.number - 1]

    def finish(self) -> None:
        if self.images:
            draw_predictions(self.images, self.predictions, path=self._file())
        self.images, self.predictions = [], []


class _Scenes:
    """Predicts with a detector or segmentor, which draws a picture of each image."""

    def __init__(self, predictor: "ScenePredictor") -> None:
        self.predictor = predictor

    def __call__(self, images: list[Image.Image], files: Sequence[Path]) -> Iterator[dict]:
        results = self.predictor.batch(images, files) if images else []
        return ({"picture": str(file), **result} for file, result in zip(files, results, strict=True))

    def finish(self) -> None:
        """Nothing: every picture is drawn."""


@contextmanager
def _json_list(file: Path) -> Iterator:
    """Write a JSON list an entry at a time; it appears whole, also if the work breaks off, but before its first entry:
    then an earlier file stays."""
    temporary, done = unfinished(file), False
    with temporary.open("w", encoding="utf-8") as opened:
        opened.write("[")
        first = True

        def write(entry: dict) -> None:
            nonlocal first
            opened.write(("\n " if first else ",\n ") + json.dumps(entry))
            first = False

        try:
            yield write
            done = True
        finally:
            opened.write("\n]\n")
            opened.close()
            if first and not done:
                temporary.unlink()
            else:
                replace_atomically(temporary, file)


def sheets_of(picture: Path, count: int) -> list[Path]:
    """The pictures of a classifier's predictions of `count` images; numbered where there are several."""
    sheets = -(-count // SHEET)
    if sheets <= 1:
        return [picture]
    digits = len(str(sheets))
    return [picture.with_name(f"{picture.stem}_{number:0{digits}}{picture.suffix}") for number in range(1, sheets + 1)]


def pictures_of(picture: Path, paths: Sequence[Path]) -> list[Path]:
    """A file for each image; with a number where the names of images would give one file twice.

    Names that file systems would find too long are cut.
    """
    if len(paths) == 1:
        return [picture]
    most = max(20, LONGEST_NAME - 30 - len(os.fsencode(picture.name)))  # beside numbers and "_classes"
    names = [_cut(path.stem, most) for path in paths]
    taken = [*names, *(f"{name}_classes" for name in names)]
    if len({name.lower() for name in taken}) < len(taken):
        names = [f"{number}_{name}" for number, name in enumerate(names)]
    return [picture.with_name(f"{picture.stem}_{name}{picture.suffix}") for name in names]


def _cut(name: str, most: int) -> str:
    encoded = os.fsencode(name)
    return name if len(encoded) <= most else encoded[:most].decode(errors="ignore")


@contextmanager
def progress_line(total: int, stream: IO[str] | None = None) -> Iterator:
    """A function that prints a result in words; on a terminal a line below says how many images are done."""
    stream = stream or sys.stderr
    shows, start, count = stream.isatty() and total > 1, time.monotonic(), 0

    def done(result: dict) -> None:
        nonlocal count
        count += 1
        if shows:
            stream.write("\r\033[K")
            stream.flush()
        print(result["image"], "->", result.get("picture") or result["error"])
        for line in _lines(result):
            print(f"  {line}")
        if shows:
            sys.stdout.flush()
            rate = count / max(time.monotonic() - start, 1e-9)
            filled = "#" * (20 * count // total)
            left = time.strftime("%H:%M:%S", time.gmtime((total - count) / rate))
            stream.write(f"[{filled:<20}] {count}/{total} images, {rate:.1f} a second, {left} left")
            stream.flush()

    try:
        yield done
    finally:
        if shows:
            stream.write("\n")


def _lines(result: dict) -> list[str]:
    """A result of `predict_files` in words."""
    if "objects" in result:
        return [f"{each['score']:6.1%}  {each['label']:<16} at {each['box']}" for each in result["objects"]]
    classes = result.get("classes", ())
    pairs = classes.items() if isinstance(classes, dict) else classes
    return [f"{share:6.1%}  {name}" for name, share in pairs]
