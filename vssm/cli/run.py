"""Runs a command: a foreseeable failure is one sentence on stderr and exit code 1."""

import argparse
import io
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
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The terminal may lack the script of a class's name, and file names may hold bytes that are no text.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(arguments)
    except (UserError, CheckpointError, DataError) as error:
        return _fail(str(error), getattr(error, "exit_code", 1))
    except ImportError as error:
        told = _missing_package(error)
        if told is None:
            raise
        return _fail(told)
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


def _missing_package(error: ImportError) -> str | None:
    """The sentence for a package that a config asks for and that is not installed; None for any other failed import."""
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("vssm"):
        package = error.name.partition(".")[0]
        return f"the package {package} is needed here and is not installed: pip install {package}"
    told = " ".join(str(error).split())
    return told if "pip install" in told else None


def _fail(sentence: str, code: int = 1) -> int:
    """Print the sentence. An error from a data worker has a traceback before its last line."""
    if sentence.startswith("Caught "):
        sentence = sentence.strip().splitlines()[-1].partition(": ")[2]
    sys.stderr.write(f"error: {sentence}\n")
    return code
