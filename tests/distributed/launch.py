"""Starts several processes that stand for several hosts, with two CPU devices each, and collects what they say."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.support import REPO

DEVICES = 2  # a process


class Ended(NamedTuple):
    status: int
    out: str
    err: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(commands: Sequence[Sequence[str]], **environment: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Starts `python ...` once for each command, all at the same time; kills what is left at the end."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "TPU_", "JAX_"))}
    variables |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(DEVICES), "PYTHONPATH": str(REPO), **environment}
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=REPO,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            with process:  # closes its pipes and waits
                pass


def launch(commands: Sequence[Sequence[str]], seconds: float, **environment: str) -> list[Ended]:
    """Runs them to their end; kills what is not done in time."""
    with running(commands, **environment) as processes:
        texts = [process.communicate(timeout=seconds) for process in processes]
    return [Ended(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]
