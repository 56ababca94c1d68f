"""What training tells those who watch: here (`hpc_mlp.live`), and from elsewhere by live.json in the run folders."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import torch

from hpc_mlp.config.plan import RunSpec
from hpc_mlp.errors import RunError
from hpc_mlp.live.display import Display, LogFormat, open_display
from hpc_mlp.live.live_file import with_beat, write_beat
from hpc_mlp.live.rows import COMPLETE, Frame, RunRow, State, Usage, of_run, progress
from hpc_mlp.live.usage import CpuMeter
from hpc_mlp.machine import gpus
from hpc_mlp.runs.folder import FAILED, LIVE, read_run
from hpc_mlp.runs.lease import is_held, read_owner
from hpc_mlp.terminal.console import Console
from hpc_mlp.training.members import Member

_LOOK_SECONDS = 2.0  # between two looks at the device and at others' runs; longer with more than forty
_BEAT_SECONDS = 5.0  # between two live.json; longer with more than fifty runs
_SMI_SECONDS = 10.0  # between two calls of nvidia-smi, which take long
_ENDINGS = {"epochs": "", "early": "stopped early", "max_seconds": "out of time", "diverged": ""}


class View:
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


class Watched(View):
    """Keeps a row for each of `specs`. `mine`: those that this process trains; the others are read from their folders
    below `runs`."""

    def __init__(
        self, specs: Sequence[RunSpec], mine: Sequence[RunSpec], runs: Path, device: torch.device
    ) -> None:
        self.runs, self.display = runs, Display()
        self.rows = {
            s.name: RunRow(s.name, s.variant, s.seed, "queued", progress=progress([], s.config.train.epochs))
            for s in specs
        }
        self.mine = {spec.name for spec in mine}
        self.others = [name for name in self.rows if name not in self.mine]
        self.old_failures = {name: _written(runs / name / FAILED) for name in self.others}
        self.host = socket.gethostname()
        self.place = (0, 0, 1)
        self.rate: float | None = None  # images/s of each run of the bank
        self.mark = (time.perf_counter(), 0)
        self.waited: Callable[[], float] = lambda: 0.0
        self.meter = CudaMeter(device) if device.type == "cuda" else CpuMeter()
        self.usage: Usage | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()  # a run that is not running gets no live.json

    # ---- told by training

    def start(self, members: Sequence[Member], waited: Callable[[], float]) -> None:
        self.waited, self.rate, self.mark = waited, None, (time.perf_counter(), 0)
        for member in members:
            self._set(member, "running")
        names = ", ".join(member.spec.name for member in members)
        if members:
            others = f" ({len(self.others)} more in other processes)" if self.others else ""
            number = f"{len(members)} run{'s' * (len(members) > 1)}"
            self.display.began(f"training {number} in one bank{others}: {names}")

    def step(self, epoch: int, step: int, num_steps: int, batch_size: int) -> None:
        self.place = (epoch, step, num_steps)
        since, images = self.mark
        images += batch_size
        self.mark = (since, images)
        if (elapsed := time.perf_counter() - since) > 0.5:
            now = images / elapsed
            self.rate = now if not self.rate else 0.7 * self.rate + 0.3 * now
            self.mark = (time.perf_counter(), 0)

    def epoch(self, members: Sequence[Member]) -> None:
        self.mark = (time.perf_counter(), 0)  # validation has taken its time
        for member in members:
            self._set(member, "running")
        self._changed(members)

    def finished(self, member: Member, accuracy: float | None) -> None:
        ending = _ENDINGS[member.stopped or "epochs"]
        self._set(member, "diverged" if member.stopped == "diverged" else "done", ending, accuracy)
        (self.runs / member.spec.name / LIVE).unlink(missing_ok=True)
        self._changed([member])

    def ended(self, members: Sequence[Member], state: State, reason: str = "") -> None:
        members = [m for m in members if self.rows[m.spec.name].state not in COMPLETE]
        for member in members:
            self._set(member, state, reason)
        self._changed(members)

    def note(self, text: str) -> None:
        self.display.note(text)

    def _set(self, member: Member, state: State, detail: str = "", accuracy: float | None = None) -> None:
        spec = member.spec
        with self._lock:
            self.rows[spec.name] = RunRow(
                spec.name, spec.variant, spec.seed, state, detail,
                progress(member.history, spec.config.train.epochs, spec.config.train.monitor), accuracy, self.host,
            )  # fmt: skip

    def _changed(self, members: Sequence[Member]) -> None:
        self.display.changed(Frame([self.rows[member.spec.name] for member in members]))

    # ---- asked by the display

    def look(self) -> Frame:
        """What there is to see now. May be called by another thread."""
        rows = [self._now(row) for row in list(self.rows.values())]
        running = sum(row.state == "running" for row in rows if row.name in self.mine)
        others = sum(
            row.progress.images_per_second or 0.0
            for row in rows
            if row.state == "running" and row.name not in self.mine
        )
        return Frame(rows, rate=None if self.rate is None else self.rate * running + others)

    def _now(self, row: RunRow) -> RunRow:
        if row.state != "running" or row.name not in self.mine:
            return row
        epoch, step, steps = self.place
        part = step / steps if epoch == row.progress.epoch else 0.0
        rate = self.rate or row.progress.images_per_second
        return replace(
            row, usage=self.usage, progress=replace(row.progress, part=part, images_per_second=rate)
        )

    # ---- in the background

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Looks at the device and at other processes' runs, and writes live.json, by a thread of its own."""
        thread = threading.Thread(target=self._background, name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(5)
            if not thread.is_alive():  # else the file system hangs
                self._read_others()

    def _background(self) -> None:
        beaten, waited, since = time.monotonic(), self.waited(), time.monotonic()
        pause = max(_BEAT_SECONDS, len(self.mine) / 10)
        while not self._stop.wait(max(_LOOK_SECONDS, len(self.others) / 20)):
            now = time.monotonic()
            share = (self.waited() - waited) / (now - since)
            waited, since = self.waited(), now
            self.usage = replace(self.meter.read(), waiting=min(1.0, max(0.0, share)) if waited else None)
            self._read_others()
            if now - beaten > pause:
                beaten = now
                self._beat()

    def _beat(self) -> None:
        for name in self.mine:
            with self._lock:
                row = self._now(self.rows[name])
                if row.state == "running":
                    write_beat(self.runs / name, row)

    def _read_others(self) -> None:
        for name in self.others:
            if self.rows[name].state in COMPLETE:
                continue
            with suppress(RunError):
                self.rows[name] = self._other(self.rows[name])
            if self.rows[name].state != "queued":
                self.display.changed(Frame([self.rows[name]]))

    def _other(self, row: RunRow) -> RunRow:
        folder = self.runs / row.name
        held = is_held(folder)  # first: what its owner wrote before it let go is then read
        if (run := read_run(folder)) is None:
            return row
        found = of_run(run)
        if found.state in COMPLETE:
            return replace(found, node=row.node)
        if held:
            node = owner.host if (owner := read_owner(folder)) else row.node
            return with_beat(replace(found, state="running", detail="", node=node), folder)
        if found.state == "failed" and _written(folder / FAILED) != self.old_failures[row.name]:
            return replace(found, node=row.node)
        # What was not seen running has not begun: its files are of an earlier attempt.
        state: State = "queued" if row.state == "queued" else "stopped"
        return replace(found, state=state, detail="", node=row.node)


def _written(path: Path) -> tuple[int, int] | None:
    """Tells one version of a file from the next; None where there is none."""
    with suppress(OSError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns
    return None


class CudaMeter:
    """Memory that PyTorch holds on the device, and its use as the driver tells it."""

    def __init__(self, device: torch.device) -> None:
        properties = torch.cuda.get_device_properties(device)
        self.device, self.total = device, int(properties.total_memory)
        self.name, self.uuid = str(properties.name), f"GPU-{properties.uuid}"
        self.has_nvml = True
        self.smi: tuple[float, float | None] | None = None  # when nvidia-smi was asked, and its answer

    def read(self) -> Usage:
        return Usage(self.name, torch.cuda.memory_allocated(self.device), self.total, self._percent())

    def _percent(self) -> float | None:
        if self.has_nvml:
            try:
                return float(torch.cuda.utilization(self.device))
            except Exception:  # no pynvml, or one that does not fit the driver
                self.has_nvml = False
        now = time.monotonic()
        if self.smi is None or now - self.smi[0] >= _SMI_SECONDS:
            self.smi = now, gpus.percent_used(self.uuid)
        return self.smi[1]


@contextmanager
def watch(
    console: Console | None,
    log_format: LogFormat,
    specs: Sequence[RunSpec],
    mine: Sequence[RunSpec],
    runs: Path,
    device: torch.device,
) -> Iterator[View]:
    """A view for a process that trains `mine`, shown on `console` where there is one, with all of `specs`."""
    view = Watched(specs if console else mine, mine, runs, device)
    shown = open_display(console, view.look, log_format) if console else nullcontext(Display())
    with shown as view.display, view.watching():
        yield view
