"""What training tells those who watch: here (`hpc_mlp.live`), and from elsewhere by live.json in the run folders."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from hpc_mlp.errors import RunError
from hpc_mlp.live.beat import write_beat
from hpc_mlp.live.display import Display, LogFormat, open_display
from hpc_mlp.live.rows import Frame, RunRow, State, Usage, of_run, progress
from hpc_mlp.live.usage import CpuMeter
from hpc_mlp.plan import RunSpec
from hpc_mlp.runs import LIVE, read_run
from hpc_mlp.training.members import Member

_LOOK_SECONDS = 2.0  # between two looks at the device, and at the runs of other processes
_BEAT_SECONDS = 5.0  # between two live.json; longer with more than fifty runs
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

    def failed(self, members: Sequence[Member], reason: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class Watched(View):
    """Keeps a row for each run. `specs`: all runs of the command; those that another process trains are read from
    their folders below `runs`."""

    def __init__(self, specs: Sequence[RunSpec], runs: Path, device: torch.device) -> None:
        self.runs, self.display = runs, Display()
        self.rows = {
            s.name: RunRow(s.name, s.variant, s.seed, "queued", progress=progress([], s.config.train.epochs))
            for s in specs
        }
        self.mine: set[str] = set()  # that this process trains, or has trained
        self.place = (0, 0, 1)
        self.rate: float | None = None  # images/s of each run of the bank
        self.mark = (time.perf_counter(), 0)
        self.waited: Callable[[], float] = lambda: 0.0
        self.meter = CudaMeter(device) if device.type == "cuda" else CpuMeter()
        self.usage: Usage | None = None
        self._stop = threading.Event()

    # ---- told by training

    def start(self, members: Sequence[Member], waited: Callable[[], float]) -> None:
        self.waited, self.rate, self.mark = waited, None, (time.perf_counter(), 0)
        for member in members:
            self._set(member, "running")
        names = ", ".join(member.spec.name for member in members)
        if members:
            self.display.began(f"training {len(members)} run{'s' * (len(members) > 1)} in one bank: {names}")

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

    def failed(self, members: Sequence[Member], reason: str) -> None:
        for member in members:
            self._set(member, "failed", reason)
        self._changed(members)

    def note(self, text: str) -> None:
        self.display.note(text)

    def _set(self, member: Member, state: State, detail: str = "", accuracy: float | None = None) -> None:
        spec = member.spec
        self.mine.add(spec.name)
        self.rows[spec.name] = RunRow(
            spec.name, spec.variant, spec.seed, state, detail,
            progress(member.history, spec.config.train.epochs), accuracy,
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

    def _background(self) -> None:
        beaten, waited, since = time.monotonic(), self.waited(), time.monotonic()
        pause = max(_BEAT_SECONDS, len(self.rows) / 10)
        while not self._stop.wait(_LOOK_SECONDS):
            now = time.monotonic()
            share = (self.waited() - waited) / (now - since)
            waited, since = self.waited(), now
            self.usage = replace(self.meter.read(), waiting=min(1.0, max(0.0, share)) if waited else None)
            self._read_others()
            if now - beaten > pause:
                beaten = now
                for row in self.look().rows:
                    if row.state == "running" and row.name in self.mine:
                        write_beat(self.runs / row.name, row)

    def _read_others(self) -> None:
        for name, row in list(self.rows.items()):
            if name in self.mine or row.state not in ("queued", "running"):
                continue
            with suppress(RunError):
                if (run := read_run(self.runs / name)) is not None and (run.metrics or run.result):
                    found = of_run(run)
                    self.rows[name] = replace(found, state="running") if found.state == "stopped" else found


class CudaMeter:
    """Memory that PyTorch holds on the device, and its use as the driver tells it."""

    def __init__(self, device: torch.device) -> None:
        properties = torch.cuda.get_device_properties(device)
        self.device, self.total = device, int(properties.total_memory)
        self.name, self.uuid = str(properties.name), f"GPU-{properties.uuid}"
        self.has_nvml = True

    def read(self) -> Usage:
        return Usage(self.name, torch.cuda.memory_allocated(self.device), self.total, self._percent())

    def _percent(self) -> float | None:
        if self.has_nvml:
            try:
                return float(torch.cuda.utilization(self.device))
            except Exception:  # no pynvml, or one that does not fit the driver
                self.has_nvml = False
        query = [
            "nvidia-smi",
            f"--id={self.uuid}",
            "--query-gpu=utilization.gpu",
            "--format=csv,noheader,nounits",
        ]
        try:
            return float(subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout)
        except (OSError, ValueError, subprocess.SubprocessError):
            return None


@contextmanager
def watch(
    console: Console | None, log_format: LogFormat, specs: Sequence[RunSpec], runs: Path, device: torch.device
) -> Iterator[View]:
    """A view for a process that trains, shown on `console` where there is one."""
    view = Watched(specs, runs, device)
    with view.watching():
        if console is None:
            yield view
            return
        with open_display(console, view.look, log_format) as view.display:
            yield view
