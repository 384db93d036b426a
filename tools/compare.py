"""Train several models the same way and compare them: python tools/compare.py STUDY [--help]."""

import sys

import _setup  # noqa: F401

from vssm.cli import compare

if __name__ == "__main__":
    sys.exit(compare())
