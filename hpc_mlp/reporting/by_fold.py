"""Accuracy of each fold, by group: whether one beats another in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpc_mlp.reporting import figures
from hpc_mlp.reporting.figures import Drawn
from hpc_mlp.reporting.folds import accuracies
from hpc_mlp.reporting.groups import Group, drawable

MOST_ROWS = 12


def fold_panels(groups: Sequence[Group], folder: Path) -> list[Drawn]:
    """One panel for each number of folds: a row a group, a dot a fold, a line from group to group
    for each fold that both have, and a bar at the mean."""
    drawn = []
    for number in dict.fromkeys(group.folds for group in groups if group.folds > 1 and group.n):
        rows = drawable([one for one in groups if one.folds == number and one.n], MOST_ROWS)
        found = [accuracies(group.models) for group in rows]
        title = f"Accuracy by fold, {number} folds"
        what, names = "accuracy on the images held out (%)", [group.shown for group in rows]
        axes = figures.rows_axes(title, what, names, least=0.42)
        for fold in range(number):
            line = 100 * np.array([one.get(fold, np.nan) for one in found])
            axes.plot(line, range(len(rows)), color=figures.MUTED, linewidth=0.7, alpha=0.6)
        for y, (group, one) in enumerate(zip(rows, found, strict=True)):
            values, color = 100 * np.array([*one.values()]), figures.color(group)
            axes.vlines(np.mean(values), y - 0.3, y + 0.3, color=color, linewidth=2)
            axes.plot(values, [y] * len(values), figures.marker(group), color=color, alpha=0.8)
        axes.xaxis.set_major_formatter("{x:g}")
        drawn.append(figures.save(axes, folder, f"folds_{number}", title))
    return drawn
