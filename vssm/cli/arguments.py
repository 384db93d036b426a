"""Command-line options of the tools. Nothing here imports a training package."""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

# Of the checkout: tools and configurations are not part of an installed package.
CHECKOUT = Path(__file__).resolve().parents[2]
DEMO_CONFIG = CHECKOUT / "configs/classification/vim/vim_demo_shapes.py"


def key_value(pair: str) -> str:
    """Refuse an option of ``--cfg-options`` without a value."""
    if "=" not in pair:
        raise argparse.ArgumentTypeError(f"takes KEY=VALUE, but got {pair!r}")
    return pair


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A type of option that refuses all but whole numbers of a range.

    >>> whole_number(1, 8)("2")
    2
    """

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"takes a whole number from {least} to {most}, but got {text!r}")
        return int(text)

    return parse


positive = whole_number(1, 1_000_000)
pixels = whole_number(1, 65_536)
seed = whole_number(0, 2**32 - 1)


def number(least: float, most: float) -> Callable[[str], float]:
    """A type of option that refuses all but numbers of a range.

    >>> number(0, 1)("0.5")
    0.5
    """

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"takes a number from {least} to {most}, but got {text!r}")
        return value

    return parse


share = number(0, 1)


def _add_config_options(parser: argparse.ArgumentParser, told: str) -> None:
    parser.add_argument(
        "--cfg-options", nargs="+", action="extend", type=key_value, default=[], metavar="KEY=VALUE", help=told
    )


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add the option without which no existing result is replaced."""
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist already; inputs never are")


def add_compile(parser: argparse.ArgumentParser) -> None:
    """Add the choice of what runs the model."""
    parser.add_argument(
        "--compile",
        nargs="?",
        choices=("on", "off"),
        const="on",
        help="on, or no value: torch.compile; off: eager; default: CUDA graphs where the steps allow it",
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the configuration file and the options of both tools."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="configuration file, such as configs/.../x.py")
    parser.add_argument(
        "--work-dir", type=Path, help="folder of checkpoints and logs (default: work_dirs/<name of the config>)"
    )
    parser.add_argument(
        "--amp",
        choices=("off", "fp16", "bf16"),
        help="precision: off (float32), bf16 (CPU and recent GPUs), fp16 (GPU); default: the config's",
    )
    _add_config_options(
        parser, "change the config: --cfg-options train_cfg.max_epochs=10 train_dataloader.batch_size=64"
    )
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        default="none",
        help="what started the processes; pytorch means torchrun (default: %(default)s)",
    )
    parser.add_argument("--seed", type=seed, help="seed of every random number (default: the config's)")
    add_compile(parser)


def train_parser() -> argparse.ArgumentParser:
    """The options of tools/train.py."""
    parser = argparse.ArgumentParser(
        description="Train a classifier, a detector or a segmentor.",
        epilog="several GPUs: torchrun --nproc-per-node 8 tools/train.py CONFIG --launcher pytorch",
    )
    add_common_arguments(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="continue from a checkpoint; without a value or with 'auto', from the latest in the work directory",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate to the total batch, in proportion to auto_scale_lr.base_batch_size",
    )
    parser.add_argument("--no-validate", action="store_true", help="train without validation")
    return parser


def test_parser() -> argparse.ArgumentParser:
    """The options of tools/test.py."""
    parser = argparse.ArgumentParser(description="Evaluate a checkpoint on the test set of a config.")
    add_common_arguments(parser)
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a checkpoint of tools/train.py, or weights in the official layout of the model",
    )
    parser.add_argument(
        "--tta", action="store_true", help="test-time augmentation of detection (boxes only) and segmentation"
    )
    return parser


def predict_parser() -> argparse.ArgumentParser:
    """The options of tools/predict.py."""
    parser = argparse.ArgumentParser(
        description="Predict the classes of images, or their objects, or the class of each pixel, and draw them."
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, folders of them, or patterns such as 'photos/**/*.jpg'"
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="a timm model, such as vim_tiny, or a configuration file of detection or segmentation; "
        "not needed for a checkpoint of tools/train.py",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="weights (default: download the published ones)",
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="names of the classes, one per line")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("predictions.png"),
        metavar="FILE",
        help="the picture, in the format of its name (.png, .jpg, .webp ...); several get numbers or the images' "
        "names; a JSON of results is written beside it (default: %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        default=8,
        metavar="N",
        help="images that are read and predicted together; fewer take less memory (default: %(default)s)",
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 ... (default: the GPU if there is one)")
    add_compile(parser)
    add_overwrite(parser)
    return parser


def compare_parser() -> argparse.ArgumentParser:
    """The options of tools/compare.py."""
    parser = argparse.ArgumentParser(
        description="Train several models the same way, with several seeds; compare accuracy, throughput and memory.",
        epilog="To continue an interrupted study, run the same command again, with --overwrite where it has written a "
        "table already. Without a GPU it runs on the CPU.",
    )
    parser.add_argument("config", type=Path, metavar="STUDY", help="such as configs/studies/scan_orders.py")
    parser.add_argument(
        "--parallel",
        type=positive,
        default=1,
        metavar="N",
        help="trainings at a time, spread over the GPUs (default: %(default)s)",
    )
    parser.add_argument("--seeds", nargs="+", type=seed, metavar="SEED", help="default: those of the study")
    parser.add_argument(
        "--work-dir", type=Path, help="folder of trainings and their logs (default: work_dirs/<name of the study>)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="for the table (CSV and Markdown) and the plot (default: --work-dir)"
    )
    _add_config_options(parser, "change the config of all trainings: --cfg-options train_cfg.max_epochs=5")
    add_overwrite(parser)
    return parser


def demo_parser() -> argparse.ArgumentParser:
    """The options of tools/demo.py."""
    parser = argparse.ArgumentParser(
        description="Train a small model on the embedded image set, evaluate it, and draw its predictions."
    )
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/demo"), help="default: %(default)s")
    parser.add_argument("--config", type=Path, default=DEMO_CONFIG, help="default: the demo's own")
    return parser


def export_parser() -> argparse.ArgumentParser:
    """The options of tools/export.py."""
    parser = argparse.ArgumentParser(
        description="Write a model into a file that runs without vssm, and compare it with the model."
    )
    parser.add_argument("model", metavar="MODEL", help="a timm model, such as vim_tiny")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="of tools/train.py, or weights in the official layout (default: the published weights)",
    )
    weights.add_argument("--untrained", action="store_true", help="initial weights, to try or to measure")
    parser.add_argument(
        "--format", choices=("onnx", "torchscript", "exported", "aoti"), default="onnx", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=pixels,
        metavar=("H", "W"),
        help="of the images, in pixels; the file takes no others (default: those that the model was evaluated with)",
    )
    parser.add_argument("--dynamic-batch", action="store_true", help="take any number of images, not one at a time")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: the model's name and the format's ending")
    add_overwrite(parser)
    return parser


def hub_parser() -> argparse.ArgumentParser:
    """The options of tools/hub.py."""
    parser = argparse.ArgumentParser(
        description="Write a classifier as a repository of the Hugging Face hub: configuration, safetensors, card."
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="default: the one that the checkpoint is of")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="of tools/train.py, or weights in the official layout (default: the published weights)",
    )
    parser.add_argument(
        "--license", required=True, metavar="NAME", help="of the weights, as the hub writes it: apache-2.0, mit, other"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="its name becomes the repository's")
    return parser


def visualize_parser() -> argparse.ArgumentParser:
    """The options of tools/visualize.py."""
    parser = argparse.ArgumentParser(description="Draw scan orders, receptive fields and hidden attention.")
    commands = parser.add_subparsers(dest="command", required=True)
    orders = commands.add_parser("orders", help="one picture of each scan order on a grid")
    orders.add_argument("names", nargs="*", metavar="NAME", help='such as hilbert or "windows(4)" (default: all)')
    orders.add_argument(
        "--grid", nargs=2, type=positive, default=(8, 10), metavar=("H", "W"), help="in tokens (default: 8 10)"
    )
    orders.add_argument(
        "--out", type=Path, default=Path("orders"), metavar="FOLDER", help="for the pictures (default: %(default)s)"
    )
    field = commands.add_parser("erf", help="the effective receptive field of a model, before and after training")
    field.add_argument(
        "--images", type=positive, default=16, metavar="N", help="number to average over (default: %(default)s)"
    )
    attention = commands.add_parser("attention", help="the hidden attention of a chosen token in one layer")
    attention.add_argument("--image", type=Path, metavar="FILE", help="default: one of the embedded set")
    attention.add_argument(
        "--place",
        nargs=2,
        type=share,
        default=(0.5, 0.5),
        metavar=("DOWN", "ALONG"),
        help="of the token in the image, from 0 to 1 (default: the middle)",
    )
    attention.add_argument(
        "--layer",
        type=int,
        default=-1,
        help="number of the scan; negative ones count from the head (default: the last)",
    )
    for command in (field, attention):
        command.add_argument("--model", metavar="NAME", help="a model of this library, such as vim_tiny")
        command.add_argument(
            "--checkpoint",
            type=Path,
            metavar="FILE",
            help="a checkpoint of tools/train.py, or weights in the official layout; without one, initial weights",
        )
        command.add_argument(
            "--data", type=Path, default=Path("data"), metavar="FOLDER", help="of the embedded set (default: data)"
        )
        name = f"{command.prog.split()[-1]}.png"
        command.add_argument(
            "--out", type=Path, default=Path(name), metavar="FILE", help="the picture (default: %(default)s)"
        )
    for command in (orders, field, attention):
        add_overwrite(command)
    return parser
