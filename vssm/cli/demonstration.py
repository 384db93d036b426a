"""tools/demo.py: trains a small model on the embedded image set, evaluates it, and draws its predictions."""

import argparse
import random
import time
from pathlib import Path

from vssm.cli.arguments import test_parser, train_parser
from vssm.cli.training import run_test, run_training
from vssm.data import ensure_shapes, read_rgb
from vssm.data.linear_baseline import linear_accuracy
from vssm.inference import latest_checkpoint, load_predictor
from vssm.inference.create import with_name
from vssm.mm.runtime.config import Config, load_config
from vssm.viz import draw_predictions

PICTURED = 24
QUIET = ("log_level=ERROR", "default_hooks.progress.plain_every=10")


def run_demo(arguments: argparse.Namespace) -> None:
    """Run the demo as the arguments of `demo_parser` say."""
    start = time.monotonic()
    config = load_config(arguments.config)
    model = with_name(config.model.backbone)["name"]
    print("1/4 drawing the embedded image set")
    images = draw_images(config)
    print(f"    {images}")

    print(f"2/4 training {model}")
    options = ("--work-dir", str(arguments.work_dir), "--cfg-options", *QUIET)
    run_training(train_parser().parse_args([str(arguments.config), *options]))

    print("3/4 evaluating it on images that it has not been trained on")
    checkpoint = latest_checkpoint(arguments.work_dir)
    metrics = run_test(test_parser().parse_args([str(arguments.config), str(checkpoint), *options]))
    linear = linear_accuracy(images, image_size=64)

    print("4/4 drawing its predictions")
    picture = draw_some(checkpoint, images / "val", arguments.work_dir / "predictions.png")

    print()
    print(f"{f'top-1 accuracy of {model}:':<50} {metrics['accuracy/top1']:.1f} %")
    print(f"top-1 accuracy of a linear classifier on pixels:   {100 * linear:.1f} %")
    print(f"picture of predictions:   {picture}")
    print(f"checkpoint:               {checkpoint}")
    print(f"time:                     {time.monotonic() - start:.0f} s")


def draw_images(config: Config) -> Path:
    """The folder of the embedded set that the config trains on."""
    dataset = config.train_dataloader.dataset
    size = {name: dataset[name] for name in ("train", "val", "image_size", "seed")}
    from rich.progress import Progress

    with Progress() as progress:
        task = progress.add_task("    images", total=size["train"] + size["val"])
        folder = ensure_shapes(dataset.root, **size, progress=lambda done, total: progress.update(task, completed=done))
        progress.update(task, completed=size["train"] + size["val"])
    return folder


def draw_some(checkpoint: Path, images: Path, picture: Path) -> Path:
    """Draw predictions of some images, the same ones in each run."""
    paths = sorted(images.rglob("*.*"))
    paths = random.Random(0).sample(paths, min(PICTURED, len(paths)))
    predictor = load_predictor(None, checkpoint)
    opened = [read_rgb(str(path), str(path)) for path in paths]
    truths = [path.parent.name for path in paths]
    return draw_predictions(opened, [predictor(image) for image in opened], truths, path=picture)
