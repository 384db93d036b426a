"""Draw scan orders, receptive fields (erf) or hidden attention: python tools/visualize.py COMMAND [--help]."""

import sys

import _setup  # noqa: F401

from vssm.cli import visualize

if __name__ == "__main__":
    sys.exit(visualize())
