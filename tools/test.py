"""Evaluate a checkpoint: python tools/test.py CONFIG CHECKPOINT [--help]."""

import sys

import _setup  # noqa: F401

from vssm.cli import test

if __name__ == "__main__":
    sys.exit(test())
