"""Train a classifier, a detector or a segmentor: python tools/train.py CONFIG [--help]."""

import sys

import _setup  # noqa: F401

from vssm.cli import train

if __name__ == "__main__":
    sys.exit(train())
