"""The runs of a folder by what they have in common: a variant and its swept values, all seeds together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_mlp.errors import RunError
from hpc_mlp.plan import ALL
from hpc_mlp.runs import PREDICTIONS, Run

Array = NDArray[Any]


@dataclass(frozen=True)
class Predictions:
    """Test probabilities float32 [N, K] and labels int64 [N]; row i is the i-th test sample in shard order."""

    probabilities: Array
    labels: Array

    @property
    def predicted(self) -> Array:
        return self.probabilities.argmax(axis=1)

    @property
    def confidence(self) -> Array:
        return self.probabilities.max(axis=1)


@dataclass(frozen=True)
class Group:
    """Runs that differ only by seed. `index` decides colour and line style on every plot."""

    index: int
    label: str
    runs: tuple[Run, ...]

    @property
    def tested(self) -> list[Run]:
        """Complete runs with test metrics."""
        return [run for run in self.runs if run.test is not None]

    @property
    def slug(self) -> str:
        return "".join(c if c.isalnum() or c in "_.-" else "_" for c in self.label)

    @property
    def validation_loss(self) -> float:
        """Mean over seeds of the best validation loss; infinite where no run is complete."""
        losses = [best_loss(run) for run in self.tested]
        return sum(losses) / len(losses) if losses else math.inf

    @property
    def chosen(self) -> Run | None:
        """The seed with the lowest validation loss, test data not looked at."""
        return min(self.tested, key=best_loss, default=None)


def best_loss(run: Run) -> float:
    return finite((run.result or {}).get("best_val_loss"), math.inf)


def finite(value: Any, otherwise: float = math.nan) -> float:
    """`value` as a float; `otherwise` where it is missing, not a number or infinite."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return otherwise
    return float(value)


def curve(run: Run, key: str) -> Array:
    """One value an epoch, float64 [epochs]; NaN where it was not finite."""
    return np.array([finite(line.get(key)) for line in run.metrics], dtype=np.float64)


def swept_text(run: Run) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(run.config.get("swept", {}).items()))


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Baseline first, the other three of the name in their order, then the rest by name."""
    members: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        members.setdefault((run.variant, swept_text(run)), []).append(run)
    rank = {name: number for number, name in enumerate(ALL)}
    keys = sorted(members, key=lambda key: (rank.get(key[0], len(rank)), key))
    return [
        Group(index, f"{variant} · {swept}" if swept else variant,
              tuple(sorted(members[variant, swept], key=lambda run: run.seed)))
        for index, (variant, swept) in enumerate(keys)
    ]  # fmt: skip


def winner(groups: Sequence[Group]) -> Group | None:
    """The group with the lowest mean validation loss."""
    complete = [group for group in groups if group.tested]
    return min(complete, key=lambda group: group.validation_loss, default=None)


def shown(groups: Sequence[Group], most: int) -> list[Group]:
    """At most `most` groups to draw: the first (what others are compared with) and the best by validation."""
    if len(groups) <= most:
        return list(groups)
    best = sorted(groups[1:], key=lambda group: group.validation_loss)[: most - 1]
    return [groups[0], *(group for group in groups[1:] if group in best)]


def read_predictions(run: Run) -> Predictions | None:
    """Test predictions of a run, None where there are none. RunError where the file is damaged."""
    path = run.path / PREDICTIONS
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = Predictions(arrays["probabilities"], arrays["labels"])
    except FileNotFoundError:
        return None
    except Exception as error:  # zipfile, numpy and zlib each have errors of their own
        raise RunError(f"{path} is damaged ({error}). Delete the run folder and train again.") from None
    if found.probabilities.ndim != 2 or len(found.probabilities) != len(found.labels) or not len(found.labels):
        raise RunError(f"{path} is damaged (its arrays do not fit). Delete the run folder and train again.")
    return found
