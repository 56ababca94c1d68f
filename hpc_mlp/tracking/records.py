"""What experiment trackers are told of a run, after the fact and from its folder alone, and the
interface that a tracker has."""

from __future__ import annotations

import hashlib
import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal, Protocol

from hpc_mlp.config.sections import flat
from hpc_mlp.errors import HpcMlpError, UserError, unknown_name
from hpc_mlp.live.live_file import folder_status
from hpc_mlp.live.rows import State
from hpc_mlp.runs.folder import METRICS, Run, read_run
from hpc_mlp.terminal.text import json_text

Written = Literal["new", "continued", "written anew", "up to date"]
# Of what was measured at its best epoch, on the test images.
_TEST = ("loss", "accuracy", "precision", "recall", "f1")


@dataclass(frozen=True)
class Point:
    """Numbers of one epoch, by name; `time`: when it ended, in seconds since 1970, by the file's
    time and the epochs' lengths."""

    epoch: int
    time: float
    values: dict[str, float]


@dataclass(frozen=True)
class TrackedRun:
    run: Run
    state: State

    @cached_property
    def key(self) -> str:
        """The same for the same run wherever its folder lies, and however often it is written."""
        text = json_text([self.run.variant, sorted(self.run.config.identity().items())])
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    @property
    def name(self) -> str:
        return self.run.path.name

    @cached_property
    def points(self) -> list[Point]:
        """Of metrics.jsonl; numbers that were not finite are left out."""
        try:
            time = (self.run.path / METRICS).stat().st_mtime
        except OSError:
            return []
        found = []
        for line in reversed(self.run.metrics):
            own = {f"val_{name}": value for name, value in line.metrics.items()}
            named = {key: line[key] for key in line if key not in ("epoch", "metrics")} | own
            values = {key: value for key, value in named.items() if value is not None}
            found.append(Point(line.epoch, time, values))
            time -= line.seconds or 0.0
        return found[::-1]

    @property
    def test(self) -> Point | None:
        """Test metrics of a complete run, as of its best epoch."""
        result = self.run.result
        if result is None or result.test is None or not self.points:
            return None
        values = {key: getattr(result.test, key) for key in _TEST} | result.test.metrics
        values = {f"test_{key}": value for key, value in values.items()}
        known = {key: value for key, value in values.items() if value is not None}
        return Point(result.best_epoch or 0, self.points[-1].time, known)

    @property
    def params(self) -> dict[str, str]:
        """Variant, seed, data and the whole configuration, as text."""
        config = self.run.config
        flat_config = {key: json_text(value) for key, value in flat(config.config).items()}
        own = {"variant": self.run.variant, "seed": str(self.run.seed)}
        return own | {"dataset": config.dataset.digest[:12]} | flat_config


class Tracker(Protocol):
    """What a tracker does. `write` is called again for a run that has grown, or was trained anew,
    and then leaves nothing twice. An entry point of the group `hpc_mlp.trackers` names a function
    (place, experiment) → Tracker."""

    def write(self, run: TrackedRun) -> Written: ...


Open = Callable[[str | None, str], Tracker]
GROUP = "hpc_mlp.trackers"
_OWN = {"tensorboard": "hpc_mlp.tracking.event_files", "mlflow": "hpc_mlp.tracking.mlflow_store"}


def open_tracker(name: str, place: str | None, experiment: str) -> Tracker:
    """UserError where there is no such tracker, or what it needs is not installed."""
    foreign = {point.name: point for point in entry_points(group=GROUP)}
    if name not in _OWN and name not in foreign:
        raise unknown_name("tracker", name, [*_OWN, *foreign])
    try:
        if name in _OWN:
            opened: Open = importlib.import_module(_OWN[name]).open_tracker
        else:
            opened = foreign[name].load()
        return opened(place, experiment)
    except ImportError as error:
        missing = error.name or str(error)
        hint = f": pip install 'hpc-mlp[{name}]'" if name in _OWN else "."
        raise UserError(f"--to {name} needs {missing}, which is not installed{hint}") from None


def tracked(folders: list[Path]) -> Iterator[TrackedRun]:
    """Those that have begun and are not damaged."""
    for folder in folders:
        status, run = folder_status(folder), read_run(folder)
        if status is not None and run is not None and run.state != "damaged":
            yield TrackedRun(run, status.state)


def write_runs(tracker: Tracker, folders: list[Path]) -> tuple[Counter[str], list[str]]:
    """Tell the tracker of the runs in `folders`. → how many were `Written` how; what failed, in a
    line each."""
    done: Counter[str] = Counter()
    problems = []
    for run in tracked(folders):
        if not run.points:
            done["without an epoch yet"] += 1
            continue
        try:
            done[tracker.write(run)] += 1
        except (HpcMlpError, OSError) as error:
            problems.append(f"{run.run.path}: {error}")
    return done, problems
