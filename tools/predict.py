"""Print the five best classes of images, and draw them: python tools/predict.py IMAGE... --model NAME [--help]."""

import argparse
import sys

import _setup  # noqa: F401

from vssm.mm.arguments import predict_parser
from vssm.mm.cli import run_tool
from vssm.mm.predict import load_predictor, predict_files


def main(arguments: argparse.Namespace) -> None:
    predictor = load_predictor(arguments.model, arguments.checkpoint, arguments.labels)
    predictions = predict_files(predictor, arguments.images, arguments.out)
    for path, best in zip(arguments.images, predictions, strict=True):
        print(path)
        for label, probability in best:
            print(f"  {probability:6.1%}  {label}")
    print(f"picture: {arguments.out}")


if __name__ == "__main__":
    sys.exit(run_tool(main, predict_parser().parse_args()))
