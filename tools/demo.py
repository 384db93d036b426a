"""Train a small model on the embedded set, evaluate it, draw its predictions: python tools/demo.py [--help]."""

import sys

import _setup  # noqa: F401

from vssm.cli import demo

if __name__ == "__main__":
    sys.exit(demo())
