"""Processes: how many the machine has cores for, and that none outlives its parent."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading

# Of Linux' prctl: the signal that the kernel sends to this process when the thread that started it ends.
PR_SET_PDEATHSIG = 1


def available_cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def die_with_parent(parent: int, signum: int = signal.SIGKILL) -> None:
    """Let the kernel send this process a signal when its parent ends, however that ends.

    Only Linux can. Elsewhere PyTorch's data workers look every 5 seconds whether their parent is alive.

    Args:
        parent: the number of the parent's process, to see whether it ended before this call.
        signum: SIGKILL, or SIGTERM for a process that saves its work first.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def protect_worker(worker_id: int = 0) -> None:
    """Tie a data worker to its parent, which alone may end it.

    Ctrl-C, ``timeout`` and clusters send their signals to workers too. A worker that obeyed would take away the batch
    that its parent needs to reach the next step and save.

    Args:
        worker_id: unused; PyTorch passes it to a ``worker_init_fn``.
    """
    started_by = multiprocessing.parent_process()  # known even if it has ended since
    parent = started_by.pid if started_by else os.getppid()
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        ignored = {signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}
        signal.pthread_sigmask(signal.SIG_BLOCK, ignored)
        threading.Thread(target=_obey_parent, args=(parent, ignored), daemon=True).start()


def _obey_parent(parent: int, signals: set[signal.Signals]) -> None:
    """End this process at a SIGTERM from its parent; take all other signals and do nothing."""
    while True:
        received = signal.sigwaitinfo(signals)
        if received.si_pid == parent and received.si_signo == signal.SIGTERM:
            os._exit(0)
