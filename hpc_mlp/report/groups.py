"""What the figures draw: groups of runs that differ only by seed, and the predictions of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_mlp.errors import RunError
from hpc_mlp.report.summary import Row, Summary
from hpc_mlp.runs import PREDICTIONS, Run

Array = NDArray[Any]


@dataclass(frozen=True)
class Predictions:
    """Test probabilities float32 [N, K] and labels int64 [N]; row i is the i-th test sample of the shards."""

    probabilities: Array
    labels: Array

    @property
    def predicted(self) -> Array:
        classes: Array = self.probabilities.argmax(axis=1)
        return classes

    @property
    def confidence(self) -> Array:
        most: Array = self.probabilities.max(axis=1)
        return most


@dataclass(frozen=True)
class Group:
    """A row of the summary as the figures see it. `index` decides its colour and line style everywhere."""

    index: int
    row: Row

    @property
    def label(self) -> str:
        return self.row.name

    @property
    def runs(self) -> list[Run]:
        return self.row.runs

    @property
    def tested(self) -> list[Run]:
        """Runs with test metrics."""
        return [run for run in self.runs if run.test]

    @property
    def slug(self) -> str:
        """The label as part of a file name, and of an element's id."""
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", self.label)

    @property
    def validation_loss(self) -> float:
        value = self.row.values["val_loss"]
        return value.mean if value is not None and self.row.n else math.inf

    @property
    def chosen(self) -> Run | None:
        """The seed with the lowest validation loss; the test images had no say."""
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


def make_groups(summary: Summary) -> list[Group]:
    return [Group(index, row) for index, row in enumerate(summary.rows)]


def winner(groups: Sequence[Group]) -> Group | None:
    """The group that the summary marks as best; of several datasets, the one with the most runs."""
    best = [group for group in groups if group.row.best]
    return max(best, key=lambda group: len(group.tested), default=None)


def drawable(groups: Sequence[Group], most: int) -> list[Group]:
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
    if (
        found.probabilities.ndim != 2
        or len(found.probabilities) != len(found.labels)
        or not len(found.labels)
    ):
        raise RunError(f"{path} is damaged (its arrays do not fit). Delete the run folder and train again.")
    if not np.isfinite(found.probabilities).all():
        raise RunError(f"{path} holds probabilities that are not numbers: the run diverged.")
    return found
