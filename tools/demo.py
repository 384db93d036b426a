"""Train a small Vim on the embedded image set, evaluate it, and draw what it says: python tools/demo.py [--help]."""

import argparse
import random
import sys
import time
from pathlib import Path

import _setup  # noqa: F401
from rich.progress import Progress

from vssm.data import ensure_shapes, read_rgb
from vssm.data.linear_baseline import linear_accuracy
from vssm.mm.arguments import test_parser, train_parser
from vssm.mm.checkpoint import latest_checkpoint
from vssm.mm.cli import run_test, run_tool, run_training
from vssm.mm.config import load_config
from vssm.mm.predict import load_predictor
from vssm.viz import draw_predictions

CONFIG = Path(__file__).resolve().parents[1] / "configs/classification/vim/vim_demo_shapes.py"
PICTURED = 24
QUIET = ("log_level=ERROR", "default_hooks.progress.plain_every=10")


def main(arguments: argparse.Namespace) -> None:
    start = time.monotonic()
    print("1/4 drawing the embedded image set")
    images = draw_images(arguments.config)
    print(f"    {images}")

    print("2/4 training a small Vim")
    options = ("--work-dir", str(arguments.work_dir), "--cfg-options", *QUIET)
    run_training(train_parser().parse_args([str(arguments.config), *options]))

    print("3/4 evaluating it on images that it has not been trained on")
    checkpoint = latest_checkpoint(arguments.work_dir)
    metrics = run_test(test_parser().parse_args([str(arguments.config), str(checkpoint), *options]))
    linear = linear_accuracy(images, image_size=64)

    print("4/4 drawing what it says")
    picture = draw_some(checkpoint, images / "val", arguments.work_dir / "predictions.png")

    print()
    print(f"top-1 accuracy of Vim:                             {metrics['accuracy/top1']:.1f} %")
    print(f"top-1 accuracy of a linear classifier on pixels:   {100 * linear:.1f} %")
    print(f"picture of predictions:   {picture}")
    print(f"checkpoint:               {checkpoint}")
    print(f"time:                     {time.monotonic() - start:.0f} s")


def draw_images(config: Path) -> Path:
    """The folder of the embedded set that the config trains on."""
    dataset = load_config(config).train_dataloader.dataset
    size = {name: dataset[name] for name in ("train", "val", "image_size", "seed")}
    with Progress() as progress:
        task = progress.add_task("    images", total=size["train"] + size["val"])
        folder = ensure_shapes(dataset.root, **size, progress=lambda done, total: progress.update(task, completed=done))
        progress.update(task, completed=size["train"] + size["val"])
    return folder


def draw_some(checkpoint: Path, images: Path, picture: Path) -> Path:
    """A picture of predictions for some images, the same in each run."""
    paths = sorted(images.rglob("*.*"))
    paths = random.Random(0).sample(paths, min(PICTURED, len(paths)))
    predictor = load_predictor(None, checkpoint)
    opened = [read_rgb(str(path), str(path)) for path in paths]
    truths = [path.parent.name for path in paths]
    return draw_predictions(opened, [predictor(image) for image in opened], truths, path=picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/demo"), help="default: %(default)s")
    parser.add_argument("--config", type=Path, default=CONFIG, help="default: the demo's own")
    sys.exit(run_tool(main, parser.parse_args()))
