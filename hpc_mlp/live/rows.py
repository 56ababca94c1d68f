"""What is shown of runs under way: a row for each, from the lines of its metrics.jsonl, whoever trains it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hpc_mlp.runs.folder import Json, Run, best_line
from hpc_mlp.runs.records import Failed

State = Literal["queued", "running", "done", "diverged", "failed", "lost", "cancelled", "stopped", "damaged"]

ACTIVE: frozenset[State] = frozenset({"queued", "running"})
COMPLETE: frozenset[State] = frozenset({"done", "diverged"})
BAD: frozenset[State] = frozenset({"failed", "lost", "damaged"})
_RECENT = 3  # epochs that the time left is reckoned from


@dataclass(frozen=True)
class Progress:
    """How far a run has come. Losses and accuracy are those of the last whole epoch; None where there are none, or
    not finite. `part`: share of the epoch under way, 0..1."""

    epochs: int | None = None  # planned
    epoch: int = 0  # finished
    part: float = 0.0
    train_loss: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    learning_rate: float | None = None
    images_per_second: float | None = None
    best_epoch: int = 0
    best_val_loss: float | None = None
    val_losses: tuple[float | None, ...] = ()  # one an epoch
    epoch_seconds: float | None = None  # of late

    @property
    def share(self) -> float:
        """Of all epochs, 0..1."""
        return min(1.0, (self.epoch + self.part) / self.epochs) if self.epochs else 0.0

    @property
    def seconds_left(self) -> float | None:
        """If it trains all its epochs; early stopping may end it sooner."""
        if self.epoch_seconds is None or not self.epochs:
            return None
        return max(0.0, self.epochs - self.epoch - self.part) * self.epoch_seconds


def progress(
    lines: Sequence[Mapping[str, Any]], epochs: int | None, monitor: str = "loss", part: float = 0.0
) -> Progress:
    """From the lines of metrics.jsonl; `monitor` as in the configuration."""
    last: Mapping[str, Any] = lines[-1] if lines else {}
    losses = tuple(number(line.get("val_loss")) for line in lines)
    best = best_line(lines, monitor)
    seconds = [s for line in lines[-_RECENT:] if (s := number(line.get("seconds"))) is not None]
    return Progress(
        epochs=epochs,
        epoch=int(last.get("epoch", 0)),
        part=part,
        train_loss=number(last.get("train_loss")),
        val_loss=losses[-1] if losses else None,
        val_accuracy=number(last.get("val_accuracy")),
        learning_rate=number(last.get("learning_rate")),
        images_per_second=number(last.get("images_per_second")),
        best_epoch=0 if best is None else int(best["epoch"]),
        best_val_loss=None if best is None else float(best["val_loss"]),
        val_losses=losses,
        epoch_seconds=sum(seconds) / len(seconds) if seconds else None,
    )


def number(value: Any) -> float | None:
    """`value` if it is a finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


@dataclass(frozen=True)
class Usage:
    """Of the device that trains: bytes of memory taken (and there), use in percent, share of the time that
    training waits for data (None: the data are resident)."""

    device: str
    memory: int | None = None
    total: int | None = None
    percent: float | None = None
    waiting: float | None = None

    def text(self) -> str:
        memory = "" if self.memory is None else _bytes(self.memory)
        if memory and self.total:
            memory += f" of {_bytes(self.total)}"
        use = "" if self.percent is None else f" {self.percent:.0f} %"
        waiting = "" if self.waiting is None else f"{100 * self.waiting:.0f} % waiting for data"
        return " · ".join(filter(None, [f"{self.device}{use}", memory, waiting]))


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


@dataclass(frozen=True)
class RunRow:
    """One run. `detail`: why it waits, how it ended or what went wrong."""

    name: str
    variant: str
    seed: int
    state: State
    detail: str = ""
    progress: Progress = Progress()
    test_accuracy: float | None = None
    node: str = ""
    usage: Usage | None = None  # of the process that trains it

    @property
    def group(self) -> str:
        """What its name says beside the seed: `dropout`, `dropout-model.dropout=0.2`."""
        return self.name.replace(f"{self.variant}-s{self.seed}", self.variant, 1)

    def as_json(self) -> Json:
        """Flat. `loss` is the training loss."""
        p = self.progress
        return {
            "name": self.name, "variant": self.variant, "seed": self.seed, "state": self.state,
            "detail": self.detail, "epoch": p.epoch, "epochs": p.epochs, "loss": p.train_loss,
            "val_loss": p.val_loss, "val_accuracy": p.val_accuracy, "learning_rate": p.learning_rate,
            "best_epoch": p.best_epoch or None, "best_val_loss": p.best_val_loss, "test_accuracy": self.test_accuracy,
            "images_per_second": p.images_per_second, "seconds_left": p.seconds_left, "node": self.node or None,
        }  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """What is to be seen at one moment."""

    rows: Sequence[RunRow] = ()
    rate: float | None = None  # images/s of all runs together; None: the sum of the rows'
    notes: Sequence[str] = field(default_factory=tuple)


def of_run(run: Run) -> RunRow:
    """What the run folder alone says; `stopped` where it has neither result nor failure."""
    state: State = "stopped" if run.state == "unfinished" else run.state
    detail = _last_line(run.failed) if state == "failed" and run.failed else run.problem
    return RunRow(
        name=run.name,
        variant=run.variant,
        seed=run.seed,
        state=state,
        detail=detail,
        progress=progress(run.metrics, run.epochs, run.monitor),
        test_accuracy=run.test.accuracy if run.test else None,
    )


def _last_line(failed: Failed) -> str:
    lines = (failed.traceback or failed.error).strip().splitlines()
    return lines[-1].strip() if lines else ""


def count(rows: Iterable[RunRow]) -> dict[State, int]:
    counts: dict[State, int] = {}
    for row in rows:
        counts[row.state] = counts.get(row.state, 0) + 1
    return counts


def summary(rows: Iterable[RunRow]) -> str:
    """`12 running, 3 done`"""
    return ", ".join(f"{number} {state}" for state, number in count(rows).items())
