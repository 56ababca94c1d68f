"""Commands worked off in order, each in a slot of this machine whose locks it holds itself."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from hpc_mlp.launch.slots import Slot, lock_folder, release
from hpc_mlp.launch.spawn import GRACE_SECONDS

POLL = 0.1
# For the checkpoint after SIGTERM, before SIGKILL: a little more than it gives its own.
STOP_SECONDS = GRACE_SECONDS + 3.0


@dataclass
class QueuedCommand:
    """One command of a queue. `wanted` is asked before and while it runs: False ends it. `label`
    names it to those who wait for its slot."""

    command: list[str]
    log: Path
    label: str = "a job"
    wanted: Callable[[], bool] = lambda: True
    ended: Callable[[int], None] = lambda code: None
    process: subprocess.Popen[bytes] | None = None
    locks: list[IO[bytes]] = field(default_factory=list)
    asked_to_stop: float | None = None


@dataclass
class Queue:
    """Work off jobs in order, each in a slot. One that fails does not touch the others. `waits` is
    told who holds the slots where others do, and "" where that is over."""

    slots: list[Slot]
    locks: Path = field(default_factory=lock_folder)
    waits: Callable[[str], None] = lambda holders: None
    stopping: bool = False

    def run(self, jobs: Iterable[QueuedCommand]) -> None:
        waiting, running = list(jobs)[::-1], list[QueuedCommand]()
        self.locks.mkdir(parents=True, exist_ok=True, mode=0o700)
        told = ""
        while waiting or running:
            for job in list(running):
                if self._is_over(job):
                    running.remove(job)
            if self.stopping:
                waiting.clear()
            progress = True
            while waiting and progress and len(running) < len(self.slots):
                if not waiting[-1].wanted():
                    waiting.pop()
                    continue
                progress = self._start(waiting[-1])
                if progress:
                    running.append(waiting.pop())
            if (holders := "" if progress else self._holders()) != told:
                told = holders
                self.waits(holders)
            if running or waiting:
                self._rest(running)

    def _holders(self) -> str:
        held = ((slot.name, slot.holder(self.locks)) for slot in self.slots)
        return "; ".join(f"{name} is held by {holder}" for name, holder in held if holder)

    def _rest(self, running: list[QueuedCommand]) -> None:
        """Until a job ends or the next poll."""
        if not running or running[0].process is None:
            time.sleep(POLL)
            return
        with suppress(subprocess.TimeoutExpired):
            running[0].process.wait(timeout=POLL if len(running) == 1 else POLL / 4)

    def _start(self, job: QueuedCommand) -> bool:
        for slot in self.slots:
            locks = slot.take(self.locks, f"{job.label} since {time.strftime('%Y-%m-%d %H:%M')}")
            if locks is None:
                continue
            env = {**os.environ, "OMP_NUM_THREADS": str(slot.threads)}
            if slot.devices:
                env["CUDA_VISIBLE_DEVICES"] = ",".join(slot.devices)
            job.locks = locks
            with job.log.open("ab") as log:
                try:
                    job.process = subprocess.Popen(
                        job.command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        env=env,
                        start_new_session=True,
                        pass_fds=[lock.fileno() for lock in locks],
                    )
                # No such program, no memory for another process.
                except OSError as error:
                    log.write(f"{error}\n".encode())
            return True
        return False

    def _is_over(self, job: QueuedCommand) -> bool:
        if job.process is None:
            release(job.locks)
            job.ended(127)
            return True
        code = job.process.poll()
        if code is not None:
            # What it may have left behind.
            _signal_group(job.process.pid, signal.SIGKILL)
            release(job.locks)
            job.ended(code)
            return True
        now = time.monotonic()
        if job.asked_to_stop is None and (self.stopping or not job.wanted()):
            job.asked_to_stop = now
            # It alone: it ends its workers when the checkpoint is written.
            job.process.terminate()
        elif job.asked_to_stop is not None and now - job.asked_to_stop > STOP_SECONDS:
            _signal_group(job.process.pid, signal.SIGKILL)
        return False


def _signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
