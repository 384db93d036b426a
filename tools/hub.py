"""Write a classifier as a repository of the Hugging Face hub: python tools/hub.py --checkpoint FILE [--help]."""

import sys

import _setup  # noqa: F401

from vssm.cli import hub

if __name__ == "__main__":
    sys.exit(hub())
