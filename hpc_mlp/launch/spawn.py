"""Several processes of the same command on this machine, with the environment that Accelerate reads.

Smaller than `accelerate launch`, which starts but one process on CPUs, and with the exit codes and messages of the
processes themselves.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from hpc_mlp.data.budget import num_cpus

_THREADS = "OMP_NUM_THREADS"
_PARENT = "HPC_MLP_PARENT"
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_GRACE_SECONDS = 30.0  # for the others, once one has failed


def run_processes(
    module: str,
    arguments: Sequence[str],
    count: int,
    *,
    threads: int | None = None,
    new_sessions: bool = True,
) -> int:
    """Run `python -m module arguments` `count` times as ranks 0 … count − 1; → the highest exit code.

    `threads` of each; without, OMP_NUM_THREADS, or else its share of the cores.

    Signals are passed on. `new_sessions`: not in our process group, so that a Ctrl-C reaches them once, through
    us; the local queue ends its packs by process group.
    Once a process fails, the others get SIGTERM, and SIGKILL if they do not leave.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    each = str(threads or os.environ.get(_THREADS) or max(1, num_cpus() // count))
    children: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        for rank in range(count):
            environment = {
                **os.environ,
                _THREADS: each,
                _PARENT: str(os.getpid()),
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
            command = [sys.executable, "-m", module, *arguments]
            children.append(subprocess.Popen(command, env=environment, start_new_session=new_sessions))
        return _wait(children)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for child in children:
            if child.poll() is None:
                child.kill()


def end_with_parent() -> None:
    """In a process of `run_processes`: be killed when the process that started it dies, by whatever signal, so that
    nobody trains on unseen. On Linux; elsewhere only signals that can be passed on end it."""
    parent = os.environ.pop(_PARENT, None)
    if parent is None:
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            os.kill(os.getpid(), signal.SIGKILL)


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int:
    deadline: float | None = None
    while any(child.poll() is None for child in children):
        failed = any(child.returncode for child in children)
        if failed and deadline is None:
            deadline = time.monotonic() + _GRACE_SECONDS
            for child in children:
                if child.poll() is None:
                    child.terminate()
        if deadline is not None and time.monotonic() > deadline:
            for child in children:
                child.kill()
        time.sleep(0.05)
    codes = [child.returncode if child.returncode >= 0 else 128 - child.returncode for child in children]
    return next((code for code in (2, 130, 1) if code in codes), max(codes))
