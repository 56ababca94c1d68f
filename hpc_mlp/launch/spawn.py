"""Several processes of the same command on this machine, with the environment that Accelerate
reads.

Smaller than `accelerate launch`, which starts but one process on CPUs, and with the exit codes and
messages of the processes themselves."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from hpc_mlp.errors import HpcMlpError
from hpc_mlp.machine.liveness import is_dead
from hpc_mlp.machine.memory import num_cpus
from hpc_mlp.machine.ports import keep_port
from hpc_mlp.machine.ranks import variables
from hpc_mlp.runs.folder import RunFolder
from hpc_mlp.runs.lease import Lease, read_owner
from hpc_mlp.terminal.output import say

_THREADS = "OMP_NUM_THREADS"
_PARENT = "HPC_MLP_PARENT"
# Of linux/prctl.h.
_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.05
# Between a failure and the end of the others, who may fail of the same cause and say so: after a
# signal; after an exit; where the input is wrong, which only the first process tells, and may find
# out seconds later.
_SETTLE_SECONDS, _SETTLE_EXIT_SECONDS, _SETTLE_INPUT_SECONDS = 0.5, 2.0, 10.0
# Between a signal, or a second Ctrl-C, and SIGKILL: a checkpoint takes its time, and within 30 s
# everything ends.
GRACE_SECONDS, _HURRIED_SECONDS = 22.0, 3.0


def run_processes(
    module: str,
    arguments: Sequence[str],
    count: int,
    *,
    threads: int | None = None,
    stdin: bytes | None = None,
    new_sessions: bool = True,
) -> int:
    """Run `python -m module arguments` `count` times as ranks 0 … count − 1; → their common exit
    code.

    `threads` of each; without, OMP_NUM_THREADS, or else its share of the cores. Each gets
    `stdin`; without, it has ours.

    Signals are passed on. `new_sessions`: not in our process group, so that a Ctrl-C reaches them
    once, through us; the local queue ends its jobs by process group. Once a process fails, it is
    named, the others get SIGTERM, and SIGKILL if they do not leave. So it is after a signal to us:
    whatever hangs, everything ends."""
    each = str(threads or os.environ.get(_THREADS) or max(1, num_cpus() // count))
    ranks = _Ranks(count)
    with keep_port("127.0.0.1") as kept, ranks.signals_passed_on():
        port = kept.getsockname()[1]
        try:
            for rank in range(count):
                environment = {
                    **os.environ,
                    _THREADS: each,
                    _PARENT: str(os.getpid()),
                    **variables(rank, count, rank, count, "127.0.0.1", port),
                }
                command = [sys.executable, "-m", module, *arguments]
                child = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=None if stdin is None else subprocess.PIPE,
                    start_new_session=new_sessions,
                )
                ranks.children.append(child)
            # One that was just being started has missed it.
            if ranks.asked is not None:
                ranks.send(signal.SIGTERM)
            for child in ranks.children:
                if stdin is not None and child.stdin is not None:
                    # Of one that has died `wait` tells how.
                    with suppress(BrokenPipeError), child.stdin as pipe:
                        pipe.write(stdin)
            return ranks.wait()
        finally:
            ranks.kill()


def end_with_parent() -> None:
    """In a process of `run_processes`: be killed when the process that started it dies, by whatever
    signal, so that nobody trains on unseen. On Linux; elsewhere only signals passed on end it."""
    parent = os.environ.pop(_PARENT, None)
    if parent is None:
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            os.kill(os.getpid(), signal.SIGKILL)


def how_it_ended(code: int) -> str:
    """A returncode of `subprocess` in words: `exit code 1`, `killed by SIGTERM`."""
    if code >= 0:
        return f"exit code {code}"
    known = {number.value: number.name for number in signal.Signals}
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"killed by {known.get(-code, f'signal {-code}')}{hint}"


def tidy(folders: Iterable[Path]) -> None:
    """Remove what processes of this machine that were killed have left in their run folders:
    leases, and files that were just being written. Else the next one to train there does."""
    for folder in folders:
        owner = read_owner(folder)
        if owner is not None and is_dead(owner):
            with suppress(OSError, HpcMlpError), Lease(folder, wait=0):
                RunFolder(folder).sweep()


@dataclass
class _Ranks:
    """The processes, by rank. `asked`: the signal that asked for their end; `failed`: ranks, in
    order; `deadline`: of SIGKILL."""

    count: int
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    asked: int | None = None
    failed: list[int] = field(default_factory=list)
    deadline: float = float("inf")

    @contextmanager
    def signals_passed_on(self) -> Iterator[None]:
        before = {
            n: signal.signal(n, self._forward)
            for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        hurried = self.asked is not None and number == signal.SIGINT
        self._end_by(_HURRIED_SECONDS if hurried else GRACE_SECONDS)
        self.asked = self.asked or number
        self.send(number)

    def send(self, number: int) -> None:
        for child in self.children:
            if child.poll() is None:
                child.send_signal(number)

    def _end_by(self, seconds: float) -> None:
        self.deadline = min(self.deadline, time.monotonic() + seconds)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        for child in self.children:
            child.wait()

    def wait(self) -> int:
        """Until all have ended; → the exit code."""
        since: float | None = None
        told: int | None = None
        while None in [child.poll() for child in self.children]:
            now = time.monotonic()
            if told is None and self.asked is None and (cause := self._cause()) is not None:
                since = since or now
                if now - since >= _settle(self.children[cause].returncode):
                    told = cause
                    self._tell(cause, "; the others are stopped")
                    self._end_by(GRACE_SECONDS)
                    self.send(signal.SIGTERM)
            if now > self.deadline:
                self.send(signal.SIGKILL)
            time.sleep(_POLL_SECONDS)
        cause = self._cause() if told is None else told
        if cause is None:
            return 0
        if self.asked is not None:
            return 128 + self.asked
        code = self.children[cause].returncode
        # The first one speaks for all, and has said why.
        if told is None and (code < 0 or self.failed != [0]):
            self._tell(cause)
        return code if code > 0 else 1

    def _cause(self) -> int | None:
        """Whom the others fail of: one killed by a signal, else the first seen to fail."""
        for rank, child in enumerate(self.children):
            if child.returncode and rank not in self.failed:
                self.failed.append(rank)
        return min(self.failed, key=lambda rank: self.children[rank].returncode > 0, default=None)

    def _tell(self, rank: int, more: str = "") -> None:
        code = self.children[rank].returncode
        # The input is wrong, and the first process has told what.
        if code == 2 and 0 in self.failed:
            return
        how = f"{'was' if code < 0 else 'ended with'} {how_it_ended(code)}"
        say(f"hpc-mlp: process {rank} of {self.count} {how}{more}.", err=True)


def _settle(code: int) -> float:
    if code < 0:
        return _SETTLE_SECONDS
    return _SETTLE_INPUT_SECONDS if code == 2 else _SETTLE_EXIT_SECONDS
