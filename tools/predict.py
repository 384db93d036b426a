"""Predict images and draw the results: python tools/predict.py IMAGE... --checkpoint FILE [--help]."""

import sys

import _setup  # noqa: F401

from vssm.cli import predict

if __name__ == "__main__":
    sys.exit(predict())
