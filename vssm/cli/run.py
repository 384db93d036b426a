"""Runs a command: a foreseeable failure is one sentence on stderr and exit code 1."""

import argparse
import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from vssm.cli.faults import explain
from vssm.data import DataError
from vssm.errors import UserError
from vssm.models import CheckpointError


def run_tool(main: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Call the body of a tool, and print a foreseeable failure as one sentence on stderr.

    Returns:
        The exit code: 0, or 1 after such a failure; 128 and the number of the signal where a signal stopped it. Any
        other failure keeps its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The terminal may lack the script of a class's name, and file names may hold bytes that are no text.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _terminated_as_interrupted(arguments):
            main(arguments)
    except (UserError, CheckpointError, DataError) as error:
        return _fail(str(error), getattr(error, "exit_code", 1))
    except ImportError as error:
        told = _missing_package(error)
        if told is None:
            raise
        return _fail(told)
    except KeyboardInterrupt as error:
        (signum,) = error.args or (signal.SIGINT,)
        return _fail("interrupted", 128 + signum)
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        return _fail(sentence)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


@contextmanager
def _terminated_as_interrupted(arguments: argparse.Namespace) -> Iterator[None]:
    """SIGTERM, which time limits send, ends a tool as Ctrl-C does: what is done is written, what is half done removed.

    Not a command of several processes, where one may wait for another outside of Python, which then never hears of the
    signal; trainings take it themselves (`vssm.mm.runtime.signals`). Nor where the program has a use for it.
    """
    free = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not free or hasattr(arguments, "launcher"):
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt(signum)


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
