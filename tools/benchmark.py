"""Measure kernels, models, detectors and segmentors: python tools/benchmark.py COMMAND [--help]."""

import sys

import _setup  # noqa: F401

from vssm.cli import benchmark

if __name__ == "__main__":
    sys.exit(benchmark())
