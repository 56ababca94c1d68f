"""What is shown of runs under way: each one's status, whoever trains it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from hpc_mlp.config.search import FOLDER as TRIALS
from hpc_mlp.runs.folder import Json
from hpc_mlp.runs.monitor import BY_LOSS, Monitor, best_line

_Ended = Literal["done", "diverged", "failed", "lost", "cancelled", "stopped", "damaged"]
State = Literal["queued", "running", "halved", _Ended]

ACTIVE: frozenset[State] = frozenset({"queued", "running"})
COMPLETE: frozenset[State] = frozenset({"done", "diverged", "halved"})
BAD: frozenset[State] = frozenset({"failed", "lost", "damaged"})
# The time left is reckoned from the last epochs alone: the machine's load changes.
_RECENT = 3

Amount = Annotated[FiniteFloat, Field(ge=0)]
Bytes = Annotated[int, Field(ge=0, lt=1 << 63)]


@dataclass(frozen=True)
class RunProgress:
    """How far a run has come: `epoch` of the planned `epochs` are finished, and of the next the
    share `part`, 0..1. Losses and accuracy are those of the last whole epoch; None where there are
    none, or not finite. `val_losses`: one for each epoch."""

    epochs: int | None = None
    epoch: int = 0
    part: float = 0.0
    train_loss: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    learning_rate: float | None = None
    images_per_second: float | None = None
    best_epoch: int | None = None
    best_val_loss: float | None = None
    val_losses: tuple[float | None, ...] = ()
    epoch_seconds: float | None = None
    # The user's own, on validation, and F1 where it decides; of the last whole epoch.
    metrics: Mapping[str, float] = field(default_factory=dict)

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


def progress_of(
    lines: Sequence[Mapping[str, Any]], epochs: int | None, monitor: Monitor = BY_LOSS
) -> RunProgress:
    """From the lines of metrics.jsonl."""
    last: Mapping[str, Any] = lines[-1] if lines else {}
    losses = tuple(_number(line.get("val_loss")) for line in lines)
    best = best_line(lines, monitor)
    recent = [_number(line.get("seconds")) for line in lines[-_RECENT:]]
    return RunProgress(
        epochs=epochs,
        epoch=int(last.get("epoch", 0)),
        train_loss=_number(last.get("train_loss")),
        val_loss=losses[-1] if losses else None,
        val_accuracy=_number(last.get("val_accuracy")),
        learning_rate=_number(last.get("learning_rate")),
        images_per_second=_number(last.get("images_per_second")),
        best_epoch=int(best["epoch"]) if best else None,
        best_val_loss=float(best["val_loss"]) if best else None,
        val_losses=losses,
        epoch_seconds=mean(recent),
        metrics=_shown(last, monitor),
    )


def _shown(line: Mapping[str, Any], monitor: Monitor) -> dict[str, float]:
    """The user's own metrics, and F1 where it decides."""
    f1 = _number(line.get("val_f1")) if monitor.name == "f1" else None
    return {**({} if f1 is None else {"f1": f1}), **(line.get("metrics") or {})}


def _number(value: Any) -> float | None:
    """`value` if it is a finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are there."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class Usage:
    """Of the device that trains: bytes of memory taken (and there), use in percent, share of the
    time that training waits for data (None: the data are resident)."""

    device: str
    memory: Bytes | None = None
    total: Bytes | None = None
    percent: Amount | None = None
    waiting: Amount | None = None

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
class RunStatus:
    """One run. `detail`: why it waits, how it ended or what went wrong; `usage`: of the process
    that trains it. From `time_left` on it is about the run's job, where it has one: time until the
    job's limit, as Slurm writes it; times requeued; its id; its log; its submission."""

    name: str
    variant: str
    seed: int
    state: State
    detail: str = ""
    progress: RunProgress = RunProgress()
    test_accuracy: float | None = None
    node: str = ""
    usage: Usage | None = None
    time_left: str = ""
    requeues: int = 0
    job: str = ""
    log: str = ""
    submission: str = ""

    @property
    def group(self) -> str:
        """What its name says beside seed and fold: `dropout`, `dropout-model.dropout=0.2`, of a
        search `dropout-search.trial=7`."""
        name = self.name if self.fold is None else self.name.removesuffix(f"-f{self.fold}")
        if trial := re.fullmatch(rf"{TRIALS}/(.*)-t0*(\d+)", name):
            name = f"{trial[1]}-search.trial={trial[2]}"
        return name.replace(f"{self.variant}-s{self.seed}", self.variant, 1)

    @property
    def fold(self) -> int | None:
        """Of a cross-validation, from 0: its name ends in `-f3`."""
        found = re.search(rf"-s{self.seed}\b.*-f(\d+)$", self.name)
        return int(found[1]) if found else None

    def as_json(self) -> Json:
        """Flat. `loss` is the training loss; `val_…` are the user's own metrics too."""
        p = self.progress
        own = {key: value for key, value in vars(self).items() if key not in ("progress", "usage")}
        names = (
            "epoch epochs val_loss val_accuracy learning_rate best_epoch best_val_loss "
            "images_per_second seconds_left"
        )
        of_progress = {name: getattr(p, name) for name in names.split()}
        of_progress |= {f"val_{name}": value for name, value in p.metrics.items()}
        return own | of_progress | {"loss": p.train_loss, "node": self.node or None}


def summary(runs: Iterable[RunStatus]) -> str:
    """`12 running, 3 done`"""
    states = Counter(run.state for run in runs)
    return ", ".join(f"{number} {state}" for state, number in states.items())
