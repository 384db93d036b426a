"""Runs a command: a foreseeable failure is one sentence on stderr and exit code 1."""

import argparse
import sys
from collections.abc import Callable

import torch

from vssm.cli.faults import explain
from vssm.data import DataError
from vssm.errors import UserError
from vssm.models import CheckpointError


def run_tool(main: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Call the body of a tool, and print a foreseeable failure as one sentence on stderr.

    Returns:
        The exit code: 0, or 1 after such a failure; 128 and the number of the signal for a training that a signal
        stopped. Any other failure keeps its traceback.
    """
    try:
        main(arguments)
    except (UserError, CheckpointError, DataError) as error:
        return _fail(str(error), getattr(error, "exit_code", 1))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        return _fail(sentence)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


def _fail(sentence: str, code: int = 1) -> int:
    """Print the sentence. An error from a data worker has a traceback before its last line."""
    if sentence.startswith("Caught "):
        sentence = sentence.strip().splitlines()[-1].partition(": ")[2]
    sys.stderr.write(f"error: {sentence}\n")
    return code
