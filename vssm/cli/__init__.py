"""The command lines: each file in tools/ calls one of these functions.

A command imports its work after its options are parsed, so that only training needs the training packages.
"""

import argparse
from collections.abc import Sequence

from vssm.cli import arguments
from vssm.cli.run import run_tool


def train(argv: Sequence[str] | None = None) -> int:
    """tools/train.py: train a classifier, a detector or a segmentor."""

    def work(options: argparse.Namespace) -> None:
        from vssm.cli.training import run_training

        run_training(options)

    return run_tool(work, arguments.train_parser().parse_args(argv))


def test(argv: Sequence[str] | None = None) -> int:
    """tools/test.py: evaluate a checkpoint."""

    def work(options: argparse.Namespace) -> None:
        from vssm.cli.training import run_test

        run_test(options)

    return run_tool(work, arguments.test_parser().parse_args(argv))


def predict(argv: Sequence[str] | None = None) -> int:
    """tools/predict.py: predict images and draw the results."""

    def work(options: argparse.Namespace) -> None:
        from vssm.cli.prediction import run_prediction

        run_prediction(options)

    return run_tool(work, arguments.predict_parser().parse_args(argv))


def visualize(argv: Sequence[str] | None = None) -> int:
    """tools/visualize.py: draw scan orders, receptive fields or hidden attention."""

    def work(options: argparse.Namespace) -> None:
        from vssm.cli.pictures import draw

        draw(options)

    return run_tool(work, arguments.visualize_parser().parse_args(argv))


def benchmark(argv: Sequence[str] | None = None) -> int:
    """tools/benchmark.py: measure kernels, models, detectors and segmentors."""
    from vssm.cli.benchmarks import benchmark_parser, run_benchmark

    return run_tool(run_benchmark, benchmark_parser().parse_args(argv))


def export(argv: Sequence[str] | None = None) -> int:
    """tools/export.py: write a model into a file for other programs."""

    def work(options: argparse.Namespace) -> None:
        from vssm.cli.exporting import run_export

        run_export(options)

    return run_tool(work, arguments.export_parser().parse_args(argv))


def hub(argv: Sequence[str] | None = None) -> int:
    """tools/hub.py: write a classifier as a repository of the Hugging Face hub."""

    def work(options: argparse.Namespace) -> None:
        from vssm.cli.exporting import run_hub

        run_hub(options)

    return run_tool(work, arguments.hub_parser().parse_args(argv))


def compare(argv: Sequence[str] | None = None) -> int:
    """tools/compare.py: train several models the same way, and compare them."""

    def work(options: argparse.Namespace) -> None:
        from vssm.cli.comparison import run_study

        run_study(options)

    return run_tool(work, arguments.compare_parser().parse_args(argv))


def demo(argv: Sequence[str] | None = None) -> int:
    """tools/demo.py: train a small model on the embedded image set, evaluate it, and draw its predictions."""

    def work(options: argparse.Namespace) -> None:
        from vssm.cli.demonstration import run_demo

        run_demo(options)

    return run_tool(work, arguments.demo_parser().parse_args(argv))
