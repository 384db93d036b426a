"""Write a model as ONNX, TorchScript or another file that runs without vssm: python tools/export.py MODEL [--help]."""

import sys

import _setup  # noqa: F401

from vssm.cli import export

if __name__ == "__main__":
    sys.exit(export())
