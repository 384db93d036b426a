"""Processes that start at once: forked from one that has made the slowest imports, but not of vssm, once a run."""

import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import example
import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["timm", "mmengine.runner", "albumentations"])


def run_code(code: str, folder: Path) -> str:
    """Run Python in a process and a folder of its own. Returns what it prints; fails with its traceback."""
    process = CONTEXT.Process(target=_run_code, args=(code, folder))
    process.start()
    process.join()
    failed = folder / "failed"
    assert process.exitcode == 0 and not failed.exists(), failed.read_text()
    return (folder / "printed").read_text()


class Command:
    """A command of `vssm.cli` in a process of its own, to be waited for and killed as one of `subprocess`.

    Args:
        log: what it prints is added to this file.
        environment: variables to be set.
    """

    def __init__(self, name: str, *arguments: object, log: Path, **environment: object) -> None:
        variables = {key: str(value) for key, value in environment.items()}
        self._process = CONTEXT.Process(target=_run, args=(name, [*map(str, arguments)], log, variables))
        self._process.start()
        self.pid = self._process.pid

    def wait(self, seconds: float) -> int:
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, seconds)
        return self._process.exitcode

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)


def train_in_two(folder: Path, *arguments: object) -> tuple[list[int], str]:
    """A training in two processes of the CPU, as torchrun starts them. Returns their exit codes and what they print."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1], "CUDA_VISIBLE_DEVICES": ""}
    place |= {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    logs = [folder / f"{rank}.log" for rank in range(2)]
    arguments = (*arguments, "--launcher", "pytorch")
    processes = [
        Command("train", *arguments, log=log, RANK=rank, LOCAL_RANK=rank, **place) for rank, log in enumerate(logs)
    ]
    codes = [process.wait(300) for process in processes]
    return codes, "".join(log.read_text() for log in logs)


def _run_code(code: str, folder: Path) -> None:
    multiprocessing.set_start_method(None, force=True)  # else its own children, data workers, are the server's
    example.run(code, folder)


def _run(name: str, arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    from vssm import cli

    multiprocessing.set_start_method(None, force=True)
    os.environ.update(environment)
    torch.set_num_threads(1)
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.exit(getattr(cli, name)(arguments))
