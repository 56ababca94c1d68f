"""What the figures draw: groups of runs that differ only by seed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_mlp.reporting.answers import Array
from hpc_mlp.reporting.summary import Row, Summary
from hpc_mlp.runs.folder import Run


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
    return finite(run.result.best_val_loss if run.result else None, math.inf)


def finite(value: Any, otherwise: float = math.nan) -> float:
    """`value` as a float; `otherwise` where it is missing, not a number or infinite."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return otherwise
    return float(value)


def curve(run: Run, key: str) -> Array:
    """One value an epoch, float64 [epochs]; NaN where it was not finite."""
    return np.array([finite(line.get(key)) for line in run.metrics], dtype=np.float64)


def make_groups(summary: Summary) -> list[Group]:
    """Without damaged runs: there is nothing to draw of them."""
    rows = [row for row in summary.rows if row.runs[0].state != "damaged"]
    return [Group(index, row) for index, row in enumerate(rows)]


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
