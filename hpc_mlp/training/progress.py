"""What training tells those who watch: here (`hpc_mlp.live`), and elsewhere by live.json."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import torch

from hpc_mlp.config.plan import LogFormat, RunSpec
from hpc_mlp.errors import RunError
from hpc_mlp.live.display import Display, open_display
from hpc_mlp.live.live_file import folder_status, write_live
from hpc_mlp.live.rows import COMPLETE, RunStatus, State, Usage, progress_of
from hpc_mlp.runs.folder import FAILED, LIVE
from hpc_mlp.terminal.console import Console
from hpc_mlp.terminal.text import count
from hpc_mlp.training.members import Member
from hpc_mlp.training.usage import CpuMeter, CudaMeter

# Between two looks at the device and at others' runs; longer with more than forty of these.
_LOOK_SECONDS = 2.0
# Between two live.json; longer with more than fifty runs.
_WRITE_SECONDS = 5.0
# Of steps that the rate is measured over: single ones vary too much.
_RATE_SECONDS = 0.5
_ENDINGS = {"epochs": "", "early": "stopped early", "max_seconds": "out of time", "diverged": ""}


class ProgressListener:
    """Told about every step and epoch of a bank. This one shows nothing."""

    def start(self, members: Sequence[Member], waited: Callable[[], float]) -> None:
        """`waited`: seconds that training has waited for data so far."""

    def step(self, epoch: int, step: int, num_steps: int, batch_size: int) -> None:
        pass

    def epoch(self, members: Sequence[Member]) -> None:
        pass

    def finished(self, member: Member, accuracy: float | None) -> None:
        pass

    def ended(self, members: Sequence[Member], state: State, reason: str = "") -> None:
        """Those of `members` that are without a result will get none here."""

    def note(self, text: str) -> None:
        pass


class RunMonitor(ProgressListener):
    """Knows the status of each of `specs`: of `own`, which this process trains, as training tells
    it; of the others by their folders below `runs`."""

    def __init__(
        self, specs: Sequence[RunSpec], own: Sequence[RunSpec], runs: Path, device: torch.device
    ) -> None:
        self.runs, self.display = runs, Display()
        self.statuses = {spec.name: _status(spec, "queued") for spec in specs}
        self.own = {spec.name for spec in own}
        self.others = [name for name in self.statuses if name not in self.own]
        self.old_failures = {name: _version(runs / name / FAILED) for name in self.others}
        self.host = socket.gethostname()
        # Epoch, step and number of steps of the bank.
        self.position = (0, 0, 1)
        # Images/s of each run of the bank, and since when how many images were counted for the
        # next.
        self.rate: float | None = None
        self.counted = (time.perf_counter(), 0)
        self.waited: Callable[[], float] = lambda: 0.0
        self.meter = CudaMeter(device) if device.type == "cuda" else CpuMeter()
        self.usage: Usage | None = None
        self._stop = threading.Event()
        # Training removes live.json of a run that has ended: it must not be written after that.
        self._lock = threading.Lock()

    # ---- told by training

    def start(self, members: Sequence[Member], waited: Callable[[], float]) -> None:
        self.waited, self.rate, self.counted = waited, None, (time.perf_counter(), 0)
        for member in members:
            self._set(member, "running")
        names = ", ".join(member.spec.name for member in members)
        if members:
            others = f" ({len(self.others)} more in other processes)" if self.others else ""
            number = count(len(members), "run")
            self.display.log(f"training {number} in one bank{others}: {names}")

    def step(self, epoch: int, step: int, num_steps: int, batch_size: int) -> None:
        self.position = (epoch, step, num_steps)
        since, images = self.counted
        images += batch_size
        self.counted = (since, images)
        if (elapsed := time.perf_counter() - since) > _RATE_SECONDS:
            now = images / elapsed
            self.rate = now if not self.rate else 0.7 * self.rate + 0.3 * now
            self.counted = (time.perf_counter(), 0)

    def epoch(self, members: Sequence[Member]) -> None:
        # Validation has taken its time, which is no training time.
        self.counted = (time.perf_counter(), 0)
        for member in members:
            self._set(member, "running")
        self._show(members)

    def finished(self, member: Member, accuracy: float | None) -> None:
        state: State = "diverged" if member.stopped == "diverged" else "done"
        if member.paused:
            state = "halved"
        self._set(member, state, _ENDINGS[member.stopped or "epochs"], accuracy)
        (self.runs / member.spec.name / LIVE).unlink(missing_ok=True)
        self._show([member])

    def ended(self, members: Sequence[Member], state: State, reason: str = "") -> None:
        members = [m for m in members if self.statuses[m.spec.name].state not in COMPLETE]
        for member in members:
            self._set(member, state, reason)
        self._show(members)

    def note(self, text: str) -> None:
        self.display.note(text)

    def _set(
        self, member: Member, state: State, detail: str = "", accuracy: float | None = None
    ) -> None:
        train = member.spec.config.train
        with self._lock:
            self.statuses[member.spec.name] = replace(
                _status(member.spec, state),
                detail=detail,
                progress=progress_of(member.history, train.epochs, member.monitor),
                test_accuracy=accuracy,
                node=self.host,
            )

    def _show(self, members: Sequence[Member]) -> None:
        self.display.update([self.statuses[member.spec.name] for member in members])

    # ---- asked by the display

    def snapshot(self) -> list[RunStatus]:
        """May be called by another thread."""
        return [self._now(status) for status in self.statuses.copy().values()]

    def _now(self, status: RunStatus) -> RunStatus:
        """With what is known of the epoch under way."""
        if status.state != "running" or status.name not in self.own:
            return status
        epoch, step, steps = self.position
        part = step / steps if epoch == status.progress.epoch else 0.0
        rate = self.rate or status.progress.images_per_second
        progress = replace(status.progress, part=part, images_per_second=rate)
        return replace(status, usage=self.usage, progress=progress)

    # ---- in the background

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A thread looks at the device and at other processes' runs, and writes live.json."""
        thread = threading.Thread(target=self._background, name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(5)
            # If the thread has not ended, the file system hangs, and would hold up this one too.
            if not thread.is_alive():
                self._read_others()

    def _background(self) -> None:
        written = since = time.monotonic()
        waited = self.waited()
        while not self._stop.wait(max(_LOOK_SECONDS, len(self.others) / 20)):
            now = time.monotonic()
            share = (self.waited() - waited) / (now - since)
            waited, since = self.waited(), now
            waiting = min(1.0, max(0.0, share)) if waited else None
            self.usage = replace(self.meter.read(), waiting=waiting)
            self._read_others()
            if now - written > max(_WRITE_SECONDS, len(self.own) / 10):
                written = now
                self._write_own()

    def _write_own(self) -> None:
        for name in self.own:
            with self._lock:
                status = self._now(self.statuses[name])
                if status.state == "running":
                    write_live(self.runs / name, status)

    def _read_others(self) -> None:
        for name in self.others:
            before = self.statuses[name]
            if before.state in COMPLETE:
                continue
            with suppress(RunError):
                self.statuses[name] = self._other(before)
            if self.statuses[name].state != "queued":
                self.display.update([self.statuses[name]])

    def _other(self, before: RunStatus) -> RunStatus:
        folder = self.runs / before.name
        found = folder_status(folder)
        if found is None:
            return before
        # A trial's name begins with the folder of trials, which its own folder does not know.
        found = replace(found, name=before.name)
        if found.state == "running":
            return found
        found = replace(found, node=before.node)
        is_new_failure = _version(folder / FAILED) != self.old_failures[before.name]
        if found.state in COMPLETE or (found.state == "failed" and is_new_failure):
            return found
        # What was not seen running has not begun: its files are of an earlier attempt.
        state: State = "queued" if before.state == "queued" else "stopped"
        return replace(found, state=state, detail="")


def _status(spec: RunSpec, state: State) -> RunStatus:
    progress = progress_of([], spec.config.train.epochs)
    return RunStatus(spec.name, spec.variant, spec.seed, state, progress=progress)


def _version(path: Path) -> tuple[int, int] | None:
    """Tells one version of a file from the next; None where there is none."""
    with suppress(OSError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns
    return None


@contextmanager
def watch(
    console: Console | None,
    log_format: LogFormat,
    specs: Sequence[RunSpec],
    own: Sequence[RunSpec],
    runs: Path,
    device: torch.device,
) -> Iterator[ProgressListener]:
    """A listener for a process that trains `own`; with a `console` it shows all of `specs`."""
    monitor = RunMonitor(specs if console else own, own, runs, device)
    shown = (
        open_display(console, monitor.snapshot, log_format) if console else nullcontext(Display())
    )
    with shown as monitor.display, monitor.watching():
        yield monitor
