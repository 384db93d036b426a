"""Say and draw what is in images: python tools/predict.py IMAGE... --checkpoint FILE [--help]."""

import argparse
import sys

import _setup  # noqa: F401

from vssm.mm.arguments import predict_parser
from vssm.mm.cli import run_tool
from vssm.mm.predict import load_predictor, predict_files


def main(arguments: argparse.Namespace) -> None:
    predictor = load_predictor(arguments.model, arguments.checkpoint, arguments.labels)
    for result in predict_files(predictor, arguments.images, arguments.out):
        print(result["image"], "->", result["picture"])
        for line in lines(result):
            print(f"  {line}")
    print(f"results: {arguments.out.with_suffix('.json')}")


def lines(result: dict) -> list[str]:
    """A result of `predict_files` in words."""
    if "objects" in result:
        return [f"{each['score']:6.1%}  {each['label']:<16} at {each['box']}" for each in result["objects"]]
    classes = result["classes"]
    pairs = classes.items() if isinstance(classes, dict) else classes
    return [f"{share:6.1%}  {name}" for name, share in pairs]


if __name__ == "__main__":
    sys.exit(run_tool(main, predict_parser().parse_args()))
